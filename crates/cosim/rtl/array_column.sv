// The edges of one array column. Above: reads the upper operand or a line for the shift chain, and
// the bias. Below: drains finished sums (output-stationary) or adds partial sums to the block's entry.
module array_column
  import systole_pkg::*;
#(
    parameter int INDEX = 0,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic signed [ACC_BITS-1:0] top,
    input  column_control_t here,
    output column_control_t right,
    output logic weight_read,
    output logic [31:0] weight_address,
    input  logic [7:0] weight_data,
    output logic activation_read,
    output logic [31:0] activation_address,
    input  logic [7:0] activation_data,
    output logic parameter_read,
    output logic [11:0] parameter_index,
    input  parameter_t parameter_data,
    // to row 0, and to the chain's end in the last row
    output nibble_t upper,
    output logic signed [ACC_BITS-1:0] bias,
    output logic chain_shift,
    output logic chain_high,
    output logic signed [4:0] chain_value,
    // below the last row
    input  landing_t landing_now,
    input  logic signed [ACC_BITS-1:0] bottom,
    output logic drain_active,
    output logic [8:0] drain_step,
    output landing_t landing,                // what the write belongs to
    output logic write,
    output logic [15:0] block_row,           // counted over all blocks
    input  logic signed [ACC_BITS-1:0] block_in,
    output logic signed [ACC_BITS-1:0] block_out,
    output logic overflowed
);
  wire is_os = cfg.dataflow == OUTPUT_STATIONARY;
  wire is_is = cfg.dataflow == INPUT_STATIONARY;

  // ---- above
  logic signed [4:0] weight, activation;
  wire [7:0] line_bytes = 8'((cfg.cols + 9'd1) >> 1);
  weight_port #(.INDEX(INDEX)) u_weight (
      .request(here.weight), .line_bytes, .enable(weight_read), .address(weight_address),
      .data(weight_data), .value(weight));
  activation_port u_activation (
      .request(here.activation), .enable(activation_read), .address(activation_address),
      .data(activation_data), .value(activation));
  always_comb begin
    parameter_read = here.reads_bias;
    parameter_index = here.parameter_index + (is_is ? 12'd0 : 12'(INDEX));
  end
  always_comb begin
    upper.value = is_os ? weight : 0;
    upper.high = here.upper_high;
    bias = 0;
    if (here.reads_bias)
      bias = ACC_BITS'(40'(parameter_data.bias_mantissa) <<< parameter_data.bias_shift[4:0]);
    chain_shift = here.preloads && here.chain_shift;
    chain_high = here.preloads && !here.chain_shift;
    chain_value = 0;
    if (here.in_use) chain_value = is_is ? activation_read ? activation : 0 : weight;
  end

  // ---- skew
  column_control_t next;
  always_comb begin
    next = here;
    next.activation.ox = here.activation.ox + 1;
    if (next.activation.ox == here.activation.output_width) begin
      next.activation.ox = 0;
      next.activation.oy = here.activation.oy + 1;
    end
  end
  always_ff @(posedge clk) begin
    right <= next;
    if (reset) begin
      right.pass.valid <= 0;
      right.preloads <= 0;
      right.reads_bias <= 0;
      right.weight.valid <= 0;
      right.activation.valid <= 0;
    end
  end

  // ---- below. Drain: one row a cycle, the last first, from the cycle after the last row's last pass.
  landing_t landing_q;
  logic [8:0] left_q, step_q;
  logic begins;
  logic [11:0] row;
  logic signed [ACC_BITS-1:0] sum;
  overflow_add #(.ACC_BITS(ACC_BITS), .IN_BITS(ACC_BITS)) u_add (
      .top, .saturate(cfg.saturate), .acc(block_in), .in(bottom), .sum, .overflowed);
  always_comb begin
    begins = landing_now.valid && landing_now.writes;
    landing = begins ? landing_now : landing_q;
    drain_active = is_os && (begins || left_q != 0);
    drain_step = begins ? 0 : step_q;
    row = is_os ? 12'(cfg.rows) - 12'd1 - 12'(drain_step) : landing_now.row;
    write = 9'(INDEX) <= 9'(landing.cols_minus_1)
        && (is_os ? drain_active && row <= 12'(landing.rows_minus_1) : begins);
    block_row = 16'(landing.block) * 16'(cfg.block_rows) + 16'(row);
  end
  assign block_out = landing.accumulate ? sum : bottom;
  always_ff @(posedge clk) begin
    if (drain_active) begin
      landing_q <= landing;
      step_q <= drain_step + 1;
      left_q <= begins ? cfg.rows - 1 : left_q - 1;
    end
    if (reset) left_q <= 0;
  end
endmodule
