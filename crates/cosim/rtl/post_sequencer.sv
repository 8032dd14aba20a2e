// The post unit's sequencer: which tap of which output its lanes read in this cycle. The pass counts
// fastest, then the tap, the group of lanes, the pixel. The first cycle is the one after the start.
module post_sequencer
  import systole_pkg::*;
  import isa_pkg::*;
#(
    parameter int LANES = 16,
    parameter int OPERAND_BITS = 8
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head,
    input  logic start,
    output logic ready,
    input  source_t source,
    input  window_t window,
    input  filter_t filter,
    input  destination_t to,
    output post_step_t step,
    output logic [3:0] block,
    output logic [11:0] block_row,
    // the output pixel of every lane
    output logic [14:0] oy [LANES],
    output logic [14:0] ox [LANES]
);
  entry_t running;
  requantize_t requantize;
  pool_t pool;
  depthwise_t depthwise;
  logic active, is_requantize, is_pool, is_depthwise, starts;
  wire [5:0] op = head.bits[5:0];
  always_comb begin
    requantize = running.bits;
    pool = running.bits;
    depthwise = running.bits;
    is_requantize = pool.opcode == OP_REQUANTIZE;
    is_pool = pool.opcode == OP_POOL;
    is_depthwise = pool.opcode == OP_DEPTHWISE;
  end
  always_comb begin
    starts = start && (op == OP_REQUANTIZE || op == OP_POOL || op == OP_DEPTHWISE);
  end

  // ---- counters
  logic [13:0] row, n_rows, column, n_columns;
  logic [7:0] dy, dx;
  logic [1:0] pass, last_pass_number;
  logic wide_a, wide_w, last_pass, last_tap, last_group, last_row;
  always_comb begin
    wide_a = OPERAND_BITS > 4 && source.wide;
    wide_w = OPERAND_BITS > 4 && filter.wide_weights;
    n_rows = is_requantize ? 14'(requantize.rows_minus_1) + 1
        : is_pool ? pool.n_pixels : depthwise.n_pixels;
    n_columns = is_requantize ? 14'(requantize.cols_minus_1) + 1
        : is_pool ? pool.n_channels : depthwise.n_channels;
    last_pass_number = !is_depthwise ? 0 : wide_a && wide_w ? 3 : 2'(wide_a || wide_w);
    last_pass = pass == last_pass_number;
    last_tap = is_requantize || (dy + 1 == window.height && dx + 1 == window.width);
    last_group = 15'(column) + 15'(cfg.lanes) >= 15'(n_columns);
    last_row = row + 1 == n_rows;
  end
  always_ff @(posedge clk) begin
    if (reset) active <= 0;
    else begin
      if (active) begin
        pass <= pass + 1;
        if (last_pass) begin
          pass <= 0;
          dx <= dx + 1;
          if (dx + 1 == window.width) begin
            dx <= 0;
            dy <= dy + 1;
          end
          if (last_tap) begin
            dx <= 0;
            dy <= 0;
            column <= last_group ? 0 : column + 14'(cfg.lanes);
            if (last_group) row <= row + 1;
          end
        end
        if (step.ends) active <= 0;
      end
      if (starts) begin
        running <= head;
        active <= 1;
        row <= 0;
        column <= 0;
        dy <= 0;
        dx <= 0;
        pass <= 0;
      end
    end
  end
  assign ready = !active || step.ends;

  // ---- pixels: of the row, or one a column (requantization on input-stationary machines)
  logic columns_are_pixels;
  logic [14:0] row_oy, row_ox, group_oy, group_ox;
  logic [14:0] lane_oy [LANES+1], lane_ox [LANES+1];
  always_comb begin
    columns_are_pixels = is_requantize && cfg.dataflow == INPUT_STATIONARY;
    lane_oy[0] = columns_are_pixels ? group_oy : row_oy;
    lane_ox[0] = columns_are_pixels ? group_ox : row_ox;
    for (int l = 0; l < LANES; l++) begin
      lane_oy[l+1] = lane_oy[l];
      lane_ox[l+1] = lane_ox[l] + 1;
      if (lane_ox[l+1] == 15'(to.width)) begin
        lane_ox[l+1] = 0;
        lane_oy[l+1] = lane_oy[l] + 1;
      end
      oy[l] = columns_are_pixels ? lane_oy[l] : row_oy;
      ox[l] = columns_are_pixels ? lane_ox[l] : row_ox;
    end
  end
  wire [31:0] lanes = 32'(cfg.lanes);
  always_ff @(posedge clk) begin
    if (active && step.last) begin
      group_oy <= lane_oy[lanes];
      group_ox <= lane_ox[lanes];
      if (last_group) begin
        group_oy <= row_oy;
        group_ox <= row_ox;
        if (!columns_are_pixels) begin
          row_oy <= lane_oy[1];
          row_ox <= lane_ox[1];
        end
      end
    end
    if (starts) begin
      // All three begin with the block and the pixel, or with the pixel.
      row_oy <= {3'b0, op == OP_REQUANTIZE ? first_requantize.y : first_pool.y};
      row_ox <= {3'b0, op == OP_REQUANTIZE ? first_requantize.x : first_pool.x};
      group_oy <= 15'(first_requantize.y);
      group_ox <= 15'(first_requantize.x);
    end
  end
  requantize_t first_requantize;
  pool_t first_pool;
  always_comb begin
    first_requantize = head.bits;
    first_pool = head.bits;
  end

  // ---- the step
  logic signed [31:0] iy, ix;
  always_comb begin
    iy = 32'(row_oy) * 32'(window.stride_y) + 32'(dy) * 32'(window.dilation_y)
        - 32'(window.pad_top);
    ix = 32'(row_ox) * 32'(window.stride_x) + 32'(dx) * 32'(window.dilation_x)
        - 32'(window.pad_left);
    block = requantize.block;
    block_row = requantize.row + row[11:0];

    step.valid = active;
    step.work = is_requantize ? REQUANTIZING : is_pool ? POOLING : CONVOLVING;
    step.is_sum = pool.sum;
    step.first_tap = dy == 0 && dx == 0;
    step.first_pass = pass == 0;
    step.last_pass = last_pass;
    step.last = active && last_pass && last_tap;
    step.ends = step.last && last_group && last_row;
    step.activation_high = wide_a && pass[0];
    step.weight_high = wide_w && (wide_a ? pass[1] : pass[0]);
    step.in_tile = iy >= 0 && ix >= 0 && iy < 32'(source.height) && ix < 32'(source.width);
    step.tap = 16'(dy) * 16'(window.width) + 16'(dx);
    step.source_pixel = 32'(source.address)
        + (iy * 32'(source.width) + ix) * 32'(source.pixel_bytes);
    step.row = row;
    step.column = column;
    step.n_columns = n_columns;
    step.channel = is_requantize ? requantize.channel : is_pool ? pool.channel : depthwise.channel;
    step.source_channel = is_pool ? pool.source_channel : depthwise.source_channel;
    step.parameter_index = is_requantize ? requantize.parameter_ : filter.parameter_;
    step.counter = filter.counter;
    step.mantissa = pool.mantissa;
    step.shift = pool.shift;
    step.add_residual = is_requantize ? requantize.add_residual
        : is_pool ? pool.add_residual : depthwise.add_residual;
    step.use_slope = is_requantize ? requantize.use_slope
        : is_pool ? pool.use_slope : depthwise.use_slope;
    step.signal_mask = pool.signal_mask;
    step.index = running.index;
  end
endmodule
