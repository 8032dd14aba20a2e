// The accumulator blocks between array and post unit.
module accumulators
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16,
    parameter int N_BLOCKS = 16,
    parameter int LANES = 16
) (
    input  logic clk,
    input  logic write [COLS],
    input  logic [3:0] write_block [COLS],
    input  logic [7:0] write_row [COLS],
    input  result_t write_data [COLS],
    input  logic [3:0] read_block,
    input  logic [7:0] read_row,
    input  logic [7:0] read_column [LANES],
    output logic signed [31:0] read_data [LANES]
);
  localparam int N = N_BLOCKS * ROWS * COLS;
  localparam int A = $clog2(N);
  logic signed [31:0] cells [N];

  always_comb
    for (int l = 0; l < LANES; l++)
      read_data[l] = cells[A'((32'(read_block) * ROWS + 32'(read_row)) * COLS + 32'(read_column[l]))];

  always_ff @(posedge clk)
    for (int c = 0; c < COLS; c++)
      if (write[c])
        cells[A'((32'(write_block[c]) * ROWS + 32'(write_row[c])) * COLS + c)] <= write_data[c].acc;
endmodule
