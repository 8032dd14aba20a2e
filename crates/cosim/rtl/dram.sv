// Main memory: one channel, fixed latency, bursts in order on one bus, a bus word a cycle.
module dram
  import systole_pkg::*;
#(
    parameter int N_BYTES = 1 << 23,
    parameter int BUS_BYTES = 64,
    parameter int MAX_BURSTS = 128   // a power of two
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic [1:0] offer,           // load, store
    input  burst_t offered [2],
    output logic [1:0] accept,
    output logic [1:0] burst_done,      // its last word passes in this cycle
    output finish_t finish [2],
    // the on-chip side of the word that passes
    output logic [1:0] memory,
    output logic load_valid,
    output logic [BUS_BYTES-1:0] byte_enable,
    output logic [24:0] chip_address,   // of lane 0, two's complement
    output logic [7:0] load_data [BUS_BYTES],
    input  logic [7:0] store_data [BUS_BYTES]
);
  logic [7:0] cells [N_BYTES] /* verilator public_flat_rw */;
  localparam int A = $clog2(N_BYTES);
  localparam int Q = $clog2(MAX_BURSTS);

  burst_t queue [MAX_BURSTS];
  logic queue_store [MAX_BURSTS];
  logic [31:0] queue_due [MAX_BURSTS];
  logic [Q-1:0] read_at, write_at;
  logic [Q:0] count;
  logic [31:0] now;
  logic last_accepted;
  logic [15:0] word;                    // of the burst on the bus

  burst_t current;
  logic is_store, moving, is_last_word;
  logic [31:0] word_mask, first_word, address, behind, lane_address;
  always_comb begin
    accept = offer;
    if (&offer) accept = last_accepted ? 2'b01 : 2'b10;

    current = queue[read_at];
    is_store = queue_store[read_at];
    moving = count != 0 && now >= queue_due[read_at];
    word_mask = ~(32'(cfg.bytes_per_cycle) - 1);
    first_word = current.dram_address & word_mask;
    address = first_word + 32'(word) * 32'(cfg.bytes_per_cycle);
    behind = current.dram_address + 32'(current.n_bytes);
    is_last_word = ((behind - 1) & word_mask) == address;
    memory = current.memory;
    load_valid = moving && !is_store;
    chip_address = 25'(current.chip_address) + 25'(address - current.dram_address);
    for (int i = 0; i < BUS_BYTES; i++) begin
      byte_enable[i] = 0;
      load_data[i] = 0;
    end
    lane_address = 0;
    if (moving) begin
      for (int i = 0; i < BUS_BYTES; i++) begin
        lane_address = address + i;
        byte_enable[i] = i < 32'(cfg.bytes_per_cycle) && lane_address >= current.dram_address
            && lane_address < behind;
        load_data[i] = cells[lane_address[A-1:0]];
      end
    end
    for (int i = 0; i < 2; i++) begin
      burst_done[i] = moving && is_last_word && is_store == 1'(i);
      finish[i].valid = burst_done[i] && current.is_last;
      finish[i].signal_mask = current.signal_mask;
      finish[i].index = current.index;
    end
  end

  always_ff @(posedge clk) begin
    if (reset) begin
      now <= 0;
      read_at <= 0;
      write_at <= 0;
      count <= 0;
      last_accepted <= 1;
      word <= 0;
    end else begin
      now <= now + 1;
      if (|accept) begin
        queue[write_at] <= offered[accept[1]];
        queue_store[write_at] <= accept[1];
        queue_due[write_at] <= now + 32'(cfg.dram_latency);
        write_at <= write_at + 1;
        last_accepted <= accept[1];
      end
      if (moving) word <= is_last_word ? 0 : word + 1;
      if (|burst_done) read_at <= read_at + 1;
      count <= count + (Q + 1)'(|accept) - (Q + 1)'(|burst_done);
    end
    if (moving && is_store) begin
      for (int i = 0; i < BUS_BYTES; i++)
        if (byte_enable[i]) cells[A'(address + i)] <= store_data[i];
    end
  end
endmodule
