// A DMA unit: splits rows into bursts that end at multiples of `burst_bytes`, offers one a cycle.
// The load and the store unit differ only in where the fields of their instructions stand.
module dma
  import systole_pkg::*;
#(
    parameter bit IS_STORE = 0
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head,
    input  logic start,
    output logic ready,
    output logic offer,
    output burst_t burst,
    input  logic accept,
    input  logic burst_done,         // a burst of this unit leaves flight
    output logic setup_finished      // a pitch instruction starts and ends
);
  logic [31:0] dram_pitch;
  logic [23:0] chip_pitch;
  logic busy;
  logic [1:0] memory;
  logic [31:0] row_dram, dram;   // first byte of the row; next byte
  logic [23:0] row_chip, chip;
  logic [15:0] rows_left;
  logic [19:0] row_bytes, bytes_left;
  logic [12:0] in_flight;
  logic [3:0] signal;
  logic [31:0] index;

  logic [127:0] bits;
  logic is_pitch;
  logic [19:0] room;
  always_comb begin
    bits = head.bits;
    is_pitch = bits[5:0] == (IS_STORE ? OP_STORE_PITCH : OP_LOAD_PITCH);
    setup_finished = start && is_pitch;
    ready = !busy;
    offer = busy && in_flight < cfg.max_outstanding;
    room = 20'(cfg.burst_bytes) - 20'(dram & (32'(cfg.burst_bytes) - 1));
    burst.memory = memory;
    burst.dram_address = dram;
    burst.chip_address = chip;
    burst.n_bytes = 17'(room < bytes_left ? room : bytes_left);
    burst.is_last = rows_left == 1 && 20'(burst.n_bytes) == bytes_left;
    burst.signal = signal;
    burst.index = index;
  end

  always_ff @(posedge clk) begin
    if (reset) begin
      busy <= 0;
      in_flight <= 0;
      dram_pitch <= 0;
      chip_pitch <= 0;
    end else begin
      in_flight <= in_flight + 13'(accept) - 13'(burst_done);
      if (start && is_pitch) begin
        dram_pitch <= bits[45:14];
        chip_pitch <= bits[69:46];
      end
      if (start && !is_pitch) begin
        busy <= 1;
        index <= head.index;
        signal <= bits[13:10];
        memory <= IS_STORE ? 2'd0 : bits[15:14];
        row_dram <= IS_STORE ? bits[45:14] : bits[47:16];
        dram <= IS_STORE ? bits[45:14] : bits[47:16];
        row_chip <= IS_STORE ? bits[69:46] : bits[71:48];
        chip <= IS_STORE ? bits[69:46] : bits[71:48];
        rows_left <= IS_STORE ? bits[85:70] : bits[87:72];
        row_bytes <= IS_STORE ? bits[105:86] : bits[107:88];
        bytes_left <= IS_STORE ? bits[105:86] : bits[107:88];
      end else if (accept) begin
        if (20'(burst.n_bytes) == bytes_left) begin
          row_dram <= row_dram + dram_pitch;
          dram <= row_dram + dram_pitch;
          row_chip <= row_chip + chip_pitch;
          chip <= row_chip + chip_pitch;
          rows_left <= rows_left - 1;
          bytes_left <= row_bytes;
          if (rows_left == 1) busy <= 0;
        end else begin
          dram <= dram + 32'(burst.n_bytes);
          chip <= chip + 24'(burst.n_bytes);
          bytes_left <= bytes_left - 20'(burst.n_bytes);
        end
      end
    end
  end
endmodule
