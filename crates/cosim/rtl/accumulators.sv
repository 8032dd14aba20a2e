// The accumulator blocks between array and post unit: a row is one value for every array column.
module accumulators
#(
    parameter int COLS = 16,
    parameter int N_ROWS = 4096,         // of all blocks
    parameter int LANES = 16,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    // a port for every column: what is there, and what is written at the end of the cycle
    input  logic write [COLS],
    input  logic [15:0] row [COLS],
    output logic signed [ACC_BITS-1:0] old [COLS],
    input  logic signed [ACC_BITS-1:0] data [COLS],
    // the post unit's
    input  logic read,
    input  logic [15:0] read_row,
    input  logic [7:0] read_column [LANES],
    output logic signed [ACC_BITS-1:0] read_data [LANES]
);
  localparam int A = $clog2(N_ROWS * COLS);
  logic signed [ACC_BITS-1:0] cells [N_ROWS*COLS];

  always_comb begin
    for (int l = 0; l < LANES; l++) begin
      read_data[l] = 0;
      if (read) read_data[l] = cells[A'(32'(read_row) * COLS + 32'(read_column[l]))];
    end
    for (int c = 0; c < COLS; c++) old[c] = write[c] ? cells[A'(32'(row[c]) * COLS + c)] : 0;
  end

  always_ff @(posedge clk)
    for (int c = 0; c < COLS; c++)
      if (write[c]) cells[A'(32'(row[c]) * COLS + c)] <= data[c];
endmodule
