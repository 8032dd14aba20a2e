// A lane of the post unit, in four stages: read, multiply (reduces a window or accumulates a
// depthwise convolution first), shift and clamp, write.
module post_lane
  import systole_pkg::*;
  import isa_pkg::*;
#(
    parameter int INDEX = 0,
    parameter int OPERAND_BITS = 8,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  config_t cfg,
    input  logic signed [ACC_BITS-1:0] top,
    input  post_step_t step,
    input  post_stage_t stage1, stage2, stage3,
    input  logic [14:0] oy, ox,
    input  source_t source,
    input  filter_t filter,
    input  destination_t to,
    input  residual_t residual,
    output logic [7:0] block_column,
    input  logic signed [ACC_BITS-1:0] block_data,
    output logic parameter_read,
    output logic [11:0] parameter_index,
    input  parameter_t parameter_data,
    output logic weight_read,
    output logic [31:0] weight_address,
    input  logic [7:0] weight_data,
    // source, second operand
    output logic read_enable [2],
    output logic [31:0] read_address [2],
    input  logic [7:0] read_data [2],
    // low byte or nibble, high byte
    output logic [1:0] write_enable [2],
    output logic [31:0] write_address [2],
    output logic [7:0] write_data [2],
    output lane_event_t seen
);
  localparam int PRODUCT_BITS = 2 * OPERAND_BITS + 2;

  // An element of a tile: 8 bits, or a nibble of the byte.
  function automatic logic signed [8:0] element(input logic [7:0] b, input logic wide,
                                                input logic is_signed, input logic odd);
    logic [3:0] nibble;
    nibble = odd ? b[7:4] : b[3:0];
    element = wide ? {is_signed & b[7], b} : {{5{is_signed & nibble[3]}}, nibble};
  endfunction

  // ---- stage 1: read
  logic on, reached;
  logic [13:0] column, offset;
  logic [15:0] channel, source_channel, second_channel;
  logic [29:0] weight_index;
  logic [31:0] residual_pixel, to_pixel, to_byte;
  logic weight_upper;
  logic [3:0] weight_nibble, activation_nibble;
  nibble_t weight, activation;
  always_comb begin
    column = step.column + 14'(INDEX);
    on = step.valid && 11'(INDEX) < cfg.lanes && column < step.n_columns;
    // What the channel follows: the column, or an input-stationary block's row.
    offset = step.work == REQUANTIZING && cfg.dataflow == INPUT_STATIONARY ? step.row : column;
    channel = step.channel + 16'(offset);
    block_column = column[7:0];
    parameter_read = on && step.work != POOLING;
    parameter_index = step.parameter_index + offset[11:0];

    source_channel = step.source_channel + 16'(column);
    read_enable[0] = on && step.work != REQUANTIZING && step.in_tile;
    read_address[0] = step.source_pixel + (source.wide ? 32'(source_channel) : 32'(source_channel[15:1]));
    weight_read = on && step.work == CONVOLVING;
    weight_index = 30'(step.tap) * 30'(step.n_columns) + 30'(column);
    weight_address = 32'(filter.weight_address)
        + (filter.wide_weights ? 32'(weight_index) : 32'(weight_index[29:1]));
    weight_upper = filter.wide_weights ? step.weight_high : weight_index[0];
    second_channel = channel - residual.channel;
    reached = on && step.add_residual && channel >= residual.channel
        && second_channel < residual.n_channels;
    residual_pixel = 32'(residual.address) + (32'(oy) * 32'(residual.stride_y)
        * 32'(residual.width) + 32'(ox) * 32'(residual.stride_x)) * 32'(residual.pixel_bytes);
    read_enable[1] = reached;
    read_address[1] = residual_pixel + (residual.wide ? 32'(second_channel) : 32'(second_channel[15:1]));

    to_pixel = 32'(to.address) + (32'(oy) * 32'(to.width) + 32'(ox)) * 32'(to.pixel_bytes);
    case (to.size)
      0: to_byte = to_pixel + 32'(channel[15:1]);
      1: to_byte = to_pixel + 32'(channel);
      default: to_byte = to_pixel + 32'({channel, 1'b0});
    endcase
  end

  // What was read.
  always_comb begin
    activation_nibble = (source.wide ? step.activation_high : source_channel[0])
        ? read_data[0][7:4] : read_data[0][3:0];
    activation.high = step.activation_high;
    activation.value = {source.signed_ && (!source.wide || step.activation_high)
        && activation_nibble[3], activation_nibble};
    if (!step.in_tile) activation.value = 0;

    weight_nibble = weight_upper ? weight_data[7:4] : weight_data[3:0];
    weight.high = step.weight_high;
    weight.value = {(!filter.wide_weights || step.weight_high) && weight_nibble[3], weight_nibble};
  end

  // What the next stage works on.
  logic on1, on2, on3, odd1, odd2, odd3, inside1, last1;
  logic first_tap1, first_pass1, last_pass1, is_sum1;
  logic [1:0] work1;
  logic [31:0] to_byte1, to_byte2, to_byte3;
  logic signed [ACC_BITS-1:0] block1, bias1;
  logic signed [8:0] tap1, second1;
  nibble_t weight1, activation1;
  logic [7:0] mantissa1;
  logic [5:0] shift1;
  logic [15:0] k1;
  logic [20:0] counter1;
  always_ff @(posedge clk) begin
    on1 <= on;
    last1 <= step.last;
    work1 <= step.work;
    is_sum1 <= step.is_sum;
    inside1 <= step.in_tile;
    first_tap1 <= step.first_tap;
    first_pass1 <= step.first_pass;
    last_pass1 <= step.last_pass;
    to_byte1 <= to_byte;
    odd1 <= channel[0];
    block1 <= block_data;
    bias1 <= ACC_BITS'(40'(parameter_data.bias_mantissa) <<< parameter_data.bias_shift[4:0]);
    tap1 <= element(read_data[0], source.wide, source.signed_, source_channel[0]);
    second1 <= reached ? element(read_data[1], residual.wide, residual.signed_, second_channel[0]) : 0;
    weight1 <= weight;
    activation1 <= activation;
    mantissa1 <= step.work == POOLING ? step.mantissa : parameter_data.mantissa;
    shift1 <= step.work == POOLING ? step.shift : parameter_data.shift[5:0];
    k1 <= step.tap;
    counter1 <= 21'(step.counter) + 21'(column);
  end

  // ---- stage 2: what a window gives
  logic signed [25:0] reduced, reduced_q;
  logic some, some_q;
  always_comb begin
    some = some_q && !first_tap1;
    reduced = some ? reduced_q : 0;
    if (inside1) begin
      if (!some) reduced = 26'(tap1);
      else if (is_sum1) reduced = reduced_q + 26'(tap1);
      else if (26'(tap1) > reduced_q) reduced = 26'(tap1);
    end
  end
  always_ff @(posedge clk) begin
    some_q <= some || inside1;
    reduced_q <= reduced;
  end

  // ---- stage 2: multiplier and accumulator of a depthwise convolution
  logic signed [9:0] partial;
  logic signed [PRODUCT_BITS-1:0] shifted_partial, mac, mac_q;
  logic signed [ACC_BITS-1:0] acc, addend, sum;
  logic overflowed;
  always_comb begin
    partial = weight1.value * activation1.value;
    shifted_partial = PRODUCT_BITS'(partial);
    if (OPERAND_BITS > 4 && weight1.high) shifted_partial = shifted_partial <<< 4;
    if (OPERAND_BITS > 4 && activation1.high) shifted_partial = shifted_partial <<< 4;
    mac = first_pass1 ? shifted_partial : mac_q + shifted_partial;
    addend = first_tap1 ? bias1 : acc;
  end
  always_comb begin
    seen.adds = on1 && work1 == CONVOLVING && last_pass1;
    seen.starts = first_tap1;
    seen.ends = last1;
    seen.overflowed = overflowed;
    seen.start_value = 32'(bias1);
    seen.product = 18'(mac);
    seen.k = k1;
    seen.channel = counter1;
  end
  overflow_add #(.ACC_BITS(ACC_BITS), .IN_BITS(PRODUCT_BITS)) u_add (
      .top, .saturate(cfg.saturate), .acc(addend), .in(mac), .sum, .overflowed);
  always_ff @(posedge clk) begin
    mac_q <= mac;
    if (seen.adds) acc <= sum;
  end

  // ---- stage 2: multiply
  logic signed [31:0] value;
  logic signed [63:0] product, product_q;
  logic [6:0] shift, shift2;
  always_comb begin
    case (work1)
      REQUANTIZING: value = 32'(block1);
      POOLING: value = 32'(reduced);
      default: value = 32'(sum);
    endcase
    product = 0;
    shift = 7'(shift1);
    if (on1 && last1) begin
      product = 64'(value) * $signed({56'b0, mantissa1});
      if (second1 != 0)
        product += (64'(second1) * $signed({56'b0, stage1.residual_mantissa}))
            <<< (shift1 - stage1.residual_shift);
      if (product < 0 && stage1.use_slope) begin
        product = product * $signed({56'b0, stage1.slope_mantissa});
        shift += 7'(stage1.slope_shift);
      end
    end
  end

  // ---- stage 3: shift and clamp
  logic signed [63:0] shifted, half, rest;
  logic signed [15:0] clamped, clamped_q;
  always_comb begin
    half = 0;
    rest = 0;
    shifted = product_q;
    if (on2 && shift2 != 0) begin
      half = 64'sd1 <<< (shift2 - 1);
      shifted = product_q >>> shift2;
      rest = product_q - (shifted <<< shift2);
      case (cfg.rounding)
        0: if (rest >= half) shifted += 1;
        1: if (rest > half || (rest == half && product_q >= 0)) shifted += 1;
        2: if (rest > half || (rest == half && shifted[0])) shifted += 1;
        default: ;
      endcase
    end
    if (shifted < 64'(stage2.q_min)) clamped = stage2.q_min;
    else if (shifted > 64'(stage2.q_max)) clamped = stage2.q_max;
    else clamped = shifted[15:0];
  end

  always_ff @(posedge clk) begin
    on2 <= on1 && last1;
    on3 <= on2;
    to_byte2 <= to_byte1;
    to_byte3 <= to_byte2;
    odd2 <= odd1;
    odd3 <= odd2;
    product_q <= product;
    shift2 <= shift;
    clamped_q <= clamped;
  end

  // ---- stage 4: write
  always_comb begin
    write_enable[0] = 0;
    write_enable[1] = 0;
    write_address[0] = to_byte3;
    write_address[1] = to_byte3 + 1;
    write_data[0] = stage3.size == 0 ? {2{clamped_q[3:0]}} : clamped_q[7:0];
    write_data[1] = clamped_q[15:8];
    if (stage3.valid && on3) begin
      write_enable[0] = stage3.size == 0 ? odd3 ? 2'b10 : 2'b01 : 2'b11;
      if (stage3.size == 2) write_enable[1] = 2'b11;
    end
  end
endmodule
