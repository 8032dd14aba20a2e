// The PE array: sequencer, edges of rows and columns, the grid, and the way from a stream's end to
// its last value's landing.
module array
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
    input  entry_t head,
    input  logic start,
    output logic ready,
    output finish_t finish,              // the last cycle of an instruction that is not setup
    output finish_t preload_finish,      // preloads overlap streams and end for themselves
    output logic setup_finished,
    // ports of the rows, then of the columns
    output logic activation_read [ROWS+COLS],
    output logic [31:0] activation_address [ROWS+COLS],
    input  logic [7:0] activation_data [ROWS+COLS],
    output logic weight_read [ROWS+COLS],
    output logic [31:0] weight_address [ROWS+COLS],
    input  logic [7:0] weight_data [ROWS+COLS],
    output logic parameter_read [COLS],
    output logic [11:0] parameter_index [COLS],
    input  parameter_t parameter_data [COLS],
    // accumulator blocks
    output logic block_write [COLS],
    output logic [15:0] block_row [COLS],
    input  logic signed [ACC_BITS-1:0] block_in [COLS],
    output logic signed [ACC_BITS-1:0] block_out [COLS],
    // for the overflow counters
    output logic signed [ACC_BITS-1:0] top,   // largest accumulator value
    output logic [31:0] fold_k,
    output pass_t pass [ROWS*COLS],
    output logic signed [ACC_BITS-1:0] bias [ROWS*COLS],
    output logic signed [2*OPERAND_BITS+1:0] product [ROWS*COLS],
    output logic overflowed [ROWS*COLS],
    output logic drain_active [COLS],
    output logic [8:0] drain_step [COLS],
    output landing_t landing [COLS],
    output logic bottom_overflowed [COLS]
);
  assign top = ACC_BITS'((40'd1 << (cfg.acc_bits - 1)) - 1);

  localparam int N = 2 * ROWS + COLS;
  landing_t on_the_way [N];
  finish_t preload_read, preload_on_the_way [COLS];
  row_control_t row_first;
  column_control_t column_first;
  latch_t latch;
  landing_t landing_first;
  array_sequencer #(.OPERAND_BITS(OPERAND_BITS)) u_sequencer (
      .clk, .reset, .cfg, .head, .start, .ready, .setup_finished, .row(row_first),
      .column(column_first), .latch, .landing(landing_first), .preload_read, .fold_k);

  // ---- edges
  row_control_t row_here [ROWS+1];
  column_control_t column_here [COLS+1];
  nibble_t left_edge [ROWS], upper_edge [COLS];
  pass_t pass_edge [COLS];
  logic signed [ACC_BITS-1:0] bias_edge [COLS], bottom [COLS];
  logic chain_shift [COLS], chain_high [COLS];
  logic signed [4:0] chain_edge [COLS];
  assign row_here[0] = row_first;
  assign column_here[0] = column_first;
  for (genvar r = 0; r < ROWS; r++) begin : row
    array_row #(.INDEX(r)) u_row (
        .clk, .reset, .cfg, .here(row_here[r]), .below(row_here[r+1]), .latch,
        .activation_read(activation_read[r]), .activation_address(activation_address[r]),
        .activation_data(activation_data[r]), .weight_read(weight_read[r]),
        .weight_address(weight_address[r]), .weight_data(weight_data[r]), .left(left_edge[r]));
  end
  for (genvar c = 0; c < COLS; c++) begin : column
    localparam int P = ROWS + c;
    array_column #(.INDEX(c), .ACC_BITS(ACC_BITS)) u_column (
        .clk, .reset, .cfg, .top, .here(column_here[c]), .right(column_here[c+1]),
        .weight_read(weight_read[P]), .weight_address(weight_address[P]),
        .weight_data(weight_data[P]), .activation_read(activation_read[P]),
        .activation_address(activation_address[P]), .activation_data(activation_data[P]),
        .parameter_read(parameter_read[c]), .parameter_index(parameter_index[c]),
        .parameter_data(parameter_data[c]), .upper(upper_edge[c]), .bias(bias_edge[c]),
        .chain_shift(chain_shift[c]), .chain_high(chain_high[c]), .chain_value(chain_edge[c]),
        .landing_now(on_the_way[32'(cfg.rows) + c]), .bottom(bottom[c]),
        .drain_active(drain_active[c]), .drain_step(drain_step[c]), .landing(landing[c]),
        .write(block_write[c]), .block_row(block_row[c]), .block_in(block_in[c]),
        .block_out(block_out[c]), .overflowed(bottom_overflowed[c]));
    assign pass_edge[c] = column_here[c].pass;
  end

  grid #(.ROWS(ROWS), .COLS(COLS), .OPERAND_BITS(OPERAND_BITS), .ACC_BITS(ACC_BITS)) u_grid (
      .clk, .reset, .cfg, .top, .left_edge, .upper_edge, .pass_edge, .bias_edge, .drain_active,
      .drain_step, .chain_shift, .chain_high, .chain_edge, .bottom, .pass, .bias, .product,
      .overflowed);

  // ---- what has ended travels until its last value has landed: a register a cycle
  always_ff @(posedge clk) begin
    for (int i = 1; i < N; i++) begin
      on_the_way[i] <= on_the_way[i-1];
      if (reset) on_the_way[i].valid <= 0;
    end
    on_the_way[0] <= landing_first;
    if (reset) on_the_way[0].valid <= 0;
  end
  wire [8:0] rows_to_drain = cfg.dataflow == OUTPUT_STATIONARY ? cfg.rows - 1 : 0;
  wire [31:0] last_landing = 32'(cfg.rows) + 32'(cfg.cols) - 1 + 32'(rows_to_drain);

  assign finish.valid = on_the_way[last_landing].valid && on_the_way[last_landing].ends;
  assign finish.signal_mask = on_the_way[last_landing].signal_mask;
  assign finish.index = on_the_way[last_landing].index;

  // A preload ends when the last column has taken its last line, which column 0 takes in the cycle of
  // the read.
  always_ff @(posedge clk) begin
    for (int i = 1; i < COLS; i++) begin
      preload_on_the_way[i] <= preload_on_the_way[i-1];
      if (reset) preload_on_the_way[i].valid <= 0;
    end
    preload_on_the_way[0] <= preload_read;
    if (reset) preload_on_the_way[0].valid <= 0;
  end
  assign preload_finish = cfg.cols == 1 ? preload_read : preload_on_the_way[32'(cfg.cols) - 2];
endmodule
