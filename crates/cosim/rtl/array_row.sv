// The edge of one array row: reads the left operand, and hands the pass to the row below, a cycle
// later and (output-stationary) a pixel further. A weight-stationary row keeps the tap of its step.
module array_row
  import systole_pkg::*;
#(
    parameter int INDEX = 0
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  row_control_t here,
    output row_control_t below,
    input  latch_t latch,
    output logic activation_read,
    output logic [31:0] activation_address,
    input  logic [7:0] activation_data,
    output logic weight_read,
    output logic [31:0] weight_address,
    input  logic [7:0] weight_data,
    output nibble_t left
);
  // ---- the kept tap: the one that a preload latches, and the one that streams use
  tap_t latched_tap, used_tap, kept_tap;
  logic latched_in_use, used_in_use, kept_in_use;
  always_comb begin
    kept_tap = cfg.shadow && !here.take ? used_tap : latched_tap;
    kept_in_use = cfg.shadow && !here.take ? used_in_use : latched_in_use;
  end
  always_ff @(posedge clk) begin
    if (latch.valid && latch.row == 8'(INDEX)) begin
      latched_tap <= latch.tap;
      latched_in_use <= latch.in_use;
    end
    if (here.take) begin
      used_tap <= latched_tap;
      used_in_use <= latched_in_use;
    end
  end

  // ---- left operand
  activation_read_t request;
  logic signed [4:0] activation, weight;
  wire is_ws = cfg.dataflow == WEIGHT_STATIONARY;
  wire is_is = cfg.dataflow == INPUT_STATIONARY;
  wire [7:0] line_bytes = 8'((cfg.rows + 9'd1) >> 1);
  always_comb begin
    request = here.activation;
    if (is_ws) begin
      request.tap = kept_tap;
      request.valid = here.activation.valid && kept_in_use;
    end
  end
  always_comb begin
    left.value = is_is ? weight : request.valid ? activation : 0;
    left.high = is_is ? here.weight.high : here.activation.high;
  end
  activation_port u_activation (
      .request, .enable(activation_read), .address(activation_address), .data(activation_data),
      .value(activation));
  weight_port #(.INDEX(INDEX)) u_weight (
      .request(here.weight), .line_bytes, .enable(weight_read), .address(weight_address),
      .data(weight_data), .value(weight));

  // ---- skew
  row_control_t next;
  always_comb begin
    next = here;
    if (!is_ws) begin
      next.activation.ox = here.activation.ox + 1;
      if (next.activation.ox == here.activation.output_width) begin
        next.activation.ox = 0;
        next.activation.oy = here.activation.oy + 1;
      end
    end
  end
  always_ff @(posedge clk) begin
    below <= next;
    if (reset) begin
      below.activation.valid <= 0;
      below.weight.valid <= 0;
      below.take <= 0;
    end
  end
endmodule
