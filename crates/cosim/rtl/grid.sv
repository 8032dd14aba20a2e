// The grid of processing elements and the wires between neighbours.
module grid
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16,
    parameter int OPERAND_BITS = 8,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic signed [ACC_BITS-1:0] top,
    input  nibble_t left_edge [ROWS],
    input  nibble_t upper_edge [COLS],
    input  pass_t pass_edge [COLS],
    input  logic signed [ACC_BITS-1:0] bias_edge [COLS],
    input  logic drain_active [COLS],
    input  logic [8:0] drain_step [COLS],
    input  logic chain_shift [COLS],
    input  logic chain_high [COLS],
    input  logic signed [4:0] chain_edge [COLS],
    output logic signed [ACC_BITS-1:0] bottom [COLS],   // what the last row holds
    // for the overflow counters: what the PEs do in this cycle
    output pass_t pass [ROWS*COLS],
    output logic signed [ACC_BITS-1:0] bias [ROWS*COLS],
    output logic signed [2*OPERAND_BITS+1:0] product [ROWS*COLS],
    output logic overflowed [ROWS*COLS]
);
  nibble_t left [ROWS*COLS], upper [ROWS*COLS];
  logic signed [ACC_BITS-1:0] acc [ROWS*COLS], result [ROWS*COLS];
  logic [9:0] chain [ROWS*COLS];
  wire stationary = cfg.dataflow != OUTPUT_STATIONARY;

  for (genvar r = 0; r < ROWS; r++) begin : row
    for (genvar c = 0; c < COLS; c++) begin : column
      localparam int I = r * COLS + c;
      localparam int LEFT = c == 0 ? I : I - 1;
      localparam int ABOVE = r == 0 ? I : I - COLS;
      localparam int BELOW = r == ROWS - 1 ? I : I + COLS;
      wire is_last_row = 9'(r) == cfg.rows - 9'd1;
      pe #(.OPERAND_BITS(OPERAND_BITS), .ACC_BITS(ACC_BITS)) u_pe (
          .clk, .reset, .stationary, .shadow(cfg.shadow), .saturate(cfg.saturate), .top,
          .left_in(c == 0 ? left_edge[r] : left[LEFT]), .left(left[I]),
          .upper_in(r == 0 ? upper_edge[c] : upper[ABOVE]), .upper(upper[I]),
          .pass_in(r == 0 ? pass_edge[c] : pass[ABOVE]), .pass(pass[I]),
          .bias_in(r == 0 ? bias_edge[c] : bias[ABOVE]), .bias(bias[I]),
          .acc_in(r == 0 ? bias[I] : acc[ABOVE]), .acc(acc[I]),
          .drain(drain_active[c] && drain_step[c] < 9'(r)),
          .result_in(result[ABOVE]), .result(result[I]),
          .chain_shift(chain_shift[c]), .chain_high(chain_high[c] && is_last_row),
          .chain_in(is_last_row ? {2{chain_edge[c]}} : chain[BELOW]), .chain(chain[I]),
          .product(product[I]), .overflowed(overflowed[I]));
    end
  end

  // The run's last row may be any of those that are built.
  always_comb
    for (int c = 0; c < COLS; c++) bottom[c] = result[(32'(cfg.rows) - 1) * COLS + c];
endmodule
