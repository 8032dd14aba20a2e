// A DMA unit: splits rows into bursts that end at multiples of `burst_bytes`, offers one a cycle.
// The load and the store unit differ only in where the fields of their instructions stand.
module dma
  import systole_pkg::*;
  import isa_pkg::*;
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
  logic [3:0] signal_mask;
  logic [31:0] index;

  load_pitch_t pitch;                // a store's is the same
  load_t load;
  store_t store;
  logic is_pitch;
  logic [19:0] room;
  always_comb begin
    pitch = head.bits;
    load = head.bits;
    store = head.bits;
    is_pitch = pitch.opcode == (IS_STORE ? OP_STORE_PITCH : OP_LOAD_PITCH);
    ready = !busy;
    offer = busy && in_flight < cfg.max_outstanding;
    room = 20'(cfg.burst_bytes) - 20'(dram & (32'(cfg.burst_bytes) - 1));
    burst.memory = memory;
    burst.dram_address = dram;
    burst.chip_address = chip;
    burst.n_bytes = 17'(room < bytes_left ? room : bytes_left);
    burst.is_last = rows_left == 1 && 20'(burst.n_bytes) == bytes_left;
    burst.signal_mask = signal_mask;
    burst.index = index;
  end

  assign setup_finished = start && is_pitch;
  always_ff @(posedge clk) begin
    if (reset) begin
      busy <= 0;
      in_flight <= 0;
      dram_pitch <= 0;
      chip_pitch <= 0;
    end else begin
      in_flight <= in_flight + 13'(accept) - 13'(burst_done);
      if (start && is_pitch) begin
        dram_pitch <= pitch.dram_pitch;
        chip_pitch <= pitch.chip_pitch;
      end
      if (start && !is_pitch) begin
        busy <= 1;
        index <= head.index;
        signal_mask <= pitch.signal_mask;
        memory <= IS_STORE ? ACTIVATIONS : load.memory;
        row_dram <= IS_STORE ? store.dram_address : load.dram_address;
        dram <= IS_STORE ? store.dram_address : load.dram_address;
        row_chip <= IS_STORE ? store.chip_address : load.chip_address;
        chip <= IS_STORE ? store.chip_address : load.chip_address;
        rows_left <= IS_STORE ? store.n_rows : load.n_rows;
        row_bytes <= IS_STORE ? store.row_bytes : load.row_bytes;
        bytes_left <= IS_STORE ? store.row_bytes : load.row_bytes;
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
