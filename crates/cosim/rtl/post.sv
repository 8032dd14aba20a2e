// The post unit: setup registers, sequencer, stages, lanes.
module post
  import systole_pkg::*;
  import isa_pkg::*;
#(
    parameter int LANES = 16,
    parameter int OPERAND_BITS = 8,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic signed [ACC_BITS-1:0] top,
    input  entry_t head,
    input  logic start,
    output logic ready,
    output finish_t finish,
    output logic setup_finished,
    output logic block_read,
    output logic [15:0] block_row,          // counted over all blocks
    output logic [7:0] block_column [LANES],
    input  logic signed [ACC_BITS-1:0] block_data [LANES],
    output logic parameter_read [LANES],
    output logic [11:0] parameter_index [LANES],
    input  parameter_t parameter_data [LANES],
    output logic weight_read [LANES],
    output logic [31:0] weight_address [LANES],
    input  logic [7:0] weight_data [LANES],
    // two ports a lane: source and second operand
    output logic read_enable [2*LANES],
    output logic [31:0] read_address [2*LANES],
    input  logic [7:0] read_data [2*LANES],
    // two ports a lane: low byte or nibble, high byte
    output logic [1:0] write_enable [2*LANES],
    output logic [31:0] write_address [2*LANES],
    output logic [7:0] write_data [2*LANES],
    output lane_event_t seen [LANES]
);
  // ---- registers that setup instructions write
  source_t source;
  window_t window;
  filter_t filter;
  destination_t to;
  residual_t residual;
  slope_t slope;
  wire [5:0] op = head.bits[5:0];
  assign setup_finished = start
      && !(op == OP_REQUANTIZE || op == OP_POOL || op == OP_DEPTHWISE);
  always_ff @(posedge clk) begin
    if (start && op == OP_SOURCE) source <= head.bits;
    if (start && op == OP_WINDOW) window <= head.bits;
    if (start && op == OP_FILTER) filter <= head.bits;
    if (start && op == OP_DESTINATION) to <= head.bits;
    if (start && op == OP_RESIDUAL) residual <= head.bits;
    if (start && op == OP_SLOPE) slope <= head.bits;
  end

  post_step_t step;
  logic [3:0] block;
  logic [11:0] row;
  logic [14:0] oy [LANES], ox [LANES];
  post_sequencer #(.LANES(LANES), .OPERAND_BITS(OPERAND_BITS)) u_sequencer (
      .clk, .reset, .cfg, .head, .start, .ready, .source, .window, .filter, .to, .step, .block,
      .block_row(row), .oy, .ox);
  assign block_read = step.valid && step.work == REQUANTIZING;
  assign block_row = 16'(block) * 16'(cfg.block_rows) + 16'(row);

  // ---- stages: read; multiply (1), shift and clamp (2), write (3)
  post_stage_t stage0, stage1, stage2, stage3;
  always_comb begin
    stage0.valid = step.last;
    stage0.ends = step.ends;
    stage0.size = to.size;
    stage0.q_min = to.q_min;
    stage0.q_max = to.q_max;
    stage0.use_slope = step.use_slope;
    stage0.slope_mantissa = slope.mantissa;
    stage0.slope_shift = slope.shift;
    stage0.residual_mantissa = residual.mantissa;
    stage0.residual_shift = residual.shift;
    stage0.signal_mask = step.signal_mask;
    stage0.index = step.index;
  end
  always_ff @(posedge clk) begin
    stage1 <= stage0;
    stage2 <= stage1;
    stage3 <= stage2;
    if (reset) begin
      stage1.valid <= 0;
      stage2.valid <= 0;
      stage3.valid <= 0;
    end
  end
  assign finish.valid = stage3.valid && stage3.ends;
  assign finish.signal_mask = stage3.signal_mask;
  assign finish.index = stage3.index;

  for (genvar l = 0; l < LANES; l++) begin : lane
    post_lane #(.INDEX(l), .OPERAND_BITS(OPERAND_BITS), .ACC_BITS(ACC_BITS)) u_lane (
        .clk, .cfg, .top, .step, .stage1, .stage2, .stage3, .oy(oy[l]), .ox(ox[l]), .source,
        .filter, .to, .residual, .block_column(block_column[l]), .block_data(block_data[l]),
        .parameter_read(parameter_read[l]), .parameter_index(parameter_index[l]),
        .parameter_data(parameter_data[l]), .weight_read(weight_read[l]),
        .weight_address(weight_address[l]), .weight_data(weight_data[l]),
        .read_enable(read_enable[2*l+:2]), .read_address(read_address[2*l+:2]),
        .read_data(read_data[2*l+:2]), .write_enable(write_enable[2*l+:2]),
        .write_address(write_address[2*l+:2]), .write_data(write_data[2*l+:2]), .seen(seen[l]));
  end
endmodule
