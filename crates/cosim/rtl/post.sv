// The post unit: requantization, residual add, slope and pooling in four stages
// (read, multiply, shift and clamp, write), a group of lanes a cycle.
module post
  import systole_pkg::*;
#(
    parameter int LANES = 16
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head,
    input  logic start,
    output logic ready,
    output finish_t finish,
    output logic setup_finished,
    output logic [3:0] block,
    output logic [7:0] block_row,
    output logic [7:0] block_column [LANES],
    input  logic signed [31:0] block_data [LANES],
    output logic parameter_read [LANES],
    output logic [11:0] parameter_index [LANES],
    input  logic [39:0] parameter_data [LANES],
    // LANES ports for the source, then LANES for the residual
    output logic read_enable [2*LANES],
    output logic [31:0] read_address [2*LANES],
    input  logic [7:0] read_data [2*LANES],
    // LANES ports for low bytes and nibbles, then LANES for high bytes
    output logic [1:0] write_enable [2*LANES],
    output logic [31:0] write_address [2*LANES],
    output logic [7:0] write_data [2*LANES]
);
  // ---- registers that setup instructions write
  logic [127:0] source_q, window_q, to_q, residual_q, slope_q;
  wire [5:0] op = head.bits[5:0];
  wire is_work = op == OP_REQUANTIZE || op == OP_POOL;
  assign setup_finished = start && !is_work;
  always_ff @(posedge clk) begin
    if (start && op == OP_SOURCE) source_q <= head.bits;
    if (start && op == OP_WINDOW) window_q <= head.bits;
    if (start && op == OP_DESTINATION) to_q <= head.bits;
    if (start && op == OP_RESIDUAL) residual_q <= head.bits;
    if (start && op == OP_SLOPE) slope_q <= head.bits;
  end

  // ---- sequencer: the first group is read in the cycle after the start
  entry_t running;
  logic active;
  logic [13:0] pixel, n_pixels, column, n_columns;
  logic [14:0] oy, ox;
  logic [7:0] dy, dx;
  wire is_pool = running.bits[5:0] == OP_POOL;
  wire sum = running.bits[98];
  wire [15:0] channel_base = is_pool ? running.bits[67:52] : running.bits[85:70];
  wire [15:0] source_channel = running.bits[83:68];
  wire add_residual = is_pool ? running.bits[113] : running.bits[86];
  wire use_slope = is_pool ? running.bits[114] : running.bits[87];
  wire [7:0] window_height = window_q[21:14], window_width = window_q[29:22];
  wire [13:0] to_width = to_q[51:38];

  logic last_tap, last_group, last_pixel, ends;
  always_comb begin
    n_pixels = is_pool ? running.bits[51:38] : 14'(running.bits[49:42]) + 1;
    n_columns = is_pool ? running.bits[97:84] : 14'(running.bits[57:50]) + 1;
    last_tap = !is_pool || (dy + 1 == window_height && dx + 1 == window_width);
    last_group = column + 14'(cfg.lanes) >= n_columns;
    last_pixel = pixel + 1 == n_pixels;
    ends = active && last_tap && last_group && last_pixel;
  end
  assign ready = !active || ends;

  always_ff @(posedge clk) begin
    if (reset) active <= 0;
    else begin
      if (active) begin
        dx <= dx + 1;
        if (!is_pool || dx + 1 == window_width) begin
          dx <= 0;
          dy <= dy + 1;
        end
        if (last_tap) begin
          dx <= 0;
          dy <= 0;
          column <= column + 14'(cfg.lanes);
          if (last_group) begin
            column <= 0;
            pixel <= pixel + 1;
            ox <= ox + 1;
            if (ox + 1 == 15'(to_width)) begin
              ox <= 0;
              oy <= oy + 1;
            end
          end
        end
        if (ends) active <= 0;
      end
      if (start && is_work) begin
        running <= head;
        active <= 1;
        pixel <= 0;
        column <= 0;
        dy <= 0;
        dx <= 0;
        oy <= op == OP_POOL ? 15'(head.bits[25:14]) : 15'(head.bits[29:18]);
        ox <= op == OP_POOL ? 15'(head.bits[37:26]) : 15'(head.bits[41:30]);
      end
    end
  end

  // ---- stage 1: read, and reduce over the window
  function automatic logic signed [31:0] element(input logic [7:0] b, input logic wide,
                                                 input logic is_signed, input logic odd);
    logic [3:0] nibble;
    nibble = odd ? b[7:4] : b[3:0];
    if (wide) element = {{24{is_signed & b[7]}}, b};
    else element = {{28{is_signed & nibble[3]}}, nibble};
  endfunction

  logic signed [31:0] iy, ix;
  logic inside_tile, reached [LANES], lane_on [LANES];
  logic [31:0] source_pixel, residual_pixel, to_pixel;
  logic [15:0] c [LANES], rc [LANES];
  logic signed [31:0] tap [LANES], partial_q [LANES], partial [LANES];
  logic some_q, some;
  always_comb begin
    iy = 32'(oy) * 32'(window_q[37:30]) + 32'(dy) * 32'(window_q[53:46]) - 32'(window_q[69:62]);
    ix = 32'(ox) * 32'(window_q[45:38]) + 32'(dx) * 32'(window_q[61:54]) - 32'(window_q[77:70]);
    inside_tile = iy >= 0 && ix >= 0 && iy < 32'(source_q[65:52]) && ix < 32'(source_q[51:38]);
    source_pixel = 32'(source_q[37:14])
        + (iy * 32'(source_q[51:38]) + ix) * 32'(source_q[81:66]);
    residual_pixel = 32'(residual_q[37:14]) + (32'(oy) * 32'(residual_q[73:70])
        * 32'(residual_q[51:38]) + 32'(ox) * 32'(residual_q[77:74])) * 32'(residual_q[67:52]);
    to_pixel = 32'(to_q[37:14]) + (32'(oy) * 32'(to_width) + 32'(ox)) * 32'(to_q[67:52]);
    block = running.bits[17:14];
    block_row = 8'(pixel);
    some = (dy != 0 || dx != 0) && some_q;
    for (int l = 0; l < LANES; l++) begin
      lane_on[l] = active && l < 32'(cfg.lanes) && 32'(column) + l < 32'(n_columns);
      block_column[l] = 8'(32'(column) + l);
      parameter_read[l] = lane_on[l] && !is_pool;
      parameter_index[l] = running.bits[69:58] + 12'(column) + 12'(l);
      c[l] = source_channel + 16'(column) + 16'(l);
      read_enable[l] = lane_on[l] && is_pool && inside_tile;
      read_address[l] = source_pixel + 32'(source_q[82] ? c[l] : c[l] >> 1);
      tap[l] = element(read_data[l], source_q[82], source_q[83], c[l][0]);
      partial[l] = some ? partial_q[l] : 0;
      if (inside_tile) begin
        if (!some) partial[l] = tap[l];
        else if (sum) partial[l] = partial_q[l] + tap[l];
        else if (tap[l] > partial_q[l]) partial[l] = tap[l];
      end
      rc[l] = channel_base + 16'(column) + 16'(l) - residual_q[107:92];
      reached[l] = lane_on[l] && add_residual && rc[l] < residual_q[123:108]
          && channel_base + 16'(column) + 16'(l) >= residual_q[107:92];
      read_enable[LANES+l] = reached[l];
      read_address[LANES+l] = residual_pixel + 32'(residual_q[68] ? rc[l] : rc[l] >> 1);
    end
  end
  always_ff @(posedge clk)
    if (active) begin
      some_q <= some || inside_tile;
      for (int l = 0; l < LANES; l++) partial_q[l] <= partial[l];
    end

  // What the stages carry besides values.
  typedef struct packed {
    logic valid, ends;
    logic [3:0] signal;
    logic [31:0] index;
    logic [31:0] pixel;              // first byte of the destination pixel
    logic [15:0] channel;            // of lane 0
    logic [1:0] size;
    logic signed [15:0] q_min, q_max;
    logic use_slope;
    logic [7:0] slope_mantissa;
    logic [3:0] slope_shift;
    logic [7:0] residual_mantissa;
    logic [5:0] residual_shift;
  } carry_t;
  carry_t carry [1];                 // of the reading cycle; then carry1 multiply, carry2 shift, carry3 write
  always_comb begin
    carry[0].valid = active && last_tap;
    carry[0].ends = ends;
    carry[0].signal = running.bits[13:10];
    carry[0].index = running.index;
    carry[0].pixel = to_pixel;
    carry[0].channel = channel_base + 16'(column);
    carry[0].size = to_q[69:68];
    carry[0].q_min = to_q[85:70];
    carry[0].q_max = to_q[101:86];
    carry[0].use_slope = use_slope;
    carry[0].slope_mantissa = slope_q[21:14];
    carry[0].slope_shift = slope_q[25:22];
    carry[0].residual_mantissa = residual_q[85:78];
    carry[0].residual_shift = residual_q[91:86];
  end
  logic signed [31:0] value_q [LANES], second_q [LANES];
  logic [7:0] mantissa_q [LANES];
  logic [5:0] shift1_q [LANES];
  carry_t carry1, carry2, carry3;
  logic on1 [LANES], on2 [LANES], on3 [LANES];
  always_ff @(posedge clk) begin
    carry1 <= carry[0];
    carry2 <= carry1;
    carry3 <= carry2;
    for (int l = 0; l < LANES; l++) begin
      on1[l] <= lane_on[l] && last_tap;
      on2[l] <= on1[l];
      on3[l] <= on2[l];
      value_q[l] <= is_pool ? partial[l] : block_data[l];
      mantissa_q[l] <= is_pool ? running.bits[106:99] : parameter_data[l][31:24];
      shift1_q[l] <= is_pool ? running.bits[112:107] : parameter_data[l][37:32];
      second_q[l] <= !reached[l] ? 0
          : element(read_data[LANES+l], residual_q[68], residual_q[69], rc[l][0]);
    end
    if (reset) begin
      carry1.valid <= 0;
      carry2.valid <= 0;
      carry3.valid <= 0;
    end
  end

  // ---- stage 2: multiply
  logic signed [63:0] product [LANES], product_q [LANES];
  logic [6:0] shift2 [LANES], shift2_q [LANES];
  always_comb
    for (int l = 0; l < LANES; l++) begin
      product[l] = 0;
      shift2[l] = 0;
      if (on1[l]) begin
        product[l] = 64'(value_q[l]) * $signed({56'b0, mantissa_q[l]});
        if (second_q[l] != 0)
          product[l] += (64'(second_q[l]) * $signed({56'b0, carry1.residual_mantissa}))
              <<< (shift1_q[l] - carry1.residual_shift);
        shift2[l] = 7'(shift1_q[l]);
        if (product[l] < 0 && carry1.use_slope) begin
          product[l] = product[l] * $signed({56'b0, carry1.slope_mantissa});
          shift2[l] += 7'(carry1.slope_shift);
        end
      end
    end

  // ---- stage 3: shift and clamp
  logic signed [63:0] shifted [LANES], half, rest;
  logic signed [15:0] clamped_q [LANES];
  always_comb begin
    half = 0;
    rest = 0;
    for (int l = 0; l < LANES; l++) begin
      shifted[l] = product_q[l];
      if (on2[l] && shift2_q[l] != 0) begin
        half = 64'sd1 <<< (shift2_q[l] - 1);
        shifted[l] = product_q[l] >>> shift2_q[l];
        rest = product_q[l] - (shifted[l] <<< shift2_q[l]);
        case (cfg.rounding)
`ifdef MUTANT_ROUNDING
          0: if (rest > half) shifted[l] += 1;
`else
          0: if (rest >= half) shifted[l] += 1;
`endif
          1: if (rest > half || (rest == half && product_q[l] >= 0)) shifted[l] += 1;
`ifdef MUTANT_ROUNDING
          2: if (rest >= half) shifted[l] += 1;
`else
          2: if (rest > half || (rest == half && shifted[l][0])) shifted[l] += 1;
`endif
          default: ;
        endcase
      end
    end
  end
  always_ff @(posedge clk)
    for (int l = 0; l < LANES; l++) begin
      product_q[l] <= product[l];
      shift2_q[l] <= shift2[l];
      clamped_q[l] <= shifted[l] < 64'(carry2.q_min) ? carry2.q_min
          : shifted[l] > 64'(carry2.q_max) ? carry2.q_max : shifted[l][15:0];
    end

  // ---- stage 4: write
  logic [15:0] channel3 [LANES];
  always_comb
    for (int l = 0; l < LANES; l++) begin
      channel3[l] = carry3.channel + 16'(l);
      write_enable[l] = 0;
      write_enable[LANES+l] = 0;
      write_address[LANES+l] = carry3.pixel + 2 * 32'(channel3[l]) + 1;
      write_data[LANES+l] = clamped_q[l][15:8];
      case (carry3.size)
        0: begin
          write_address[l] = carry3.pixel + 32'(channel3[l] >> 1);
          write_data[l] = {clamped_q[l][3:0], clamped_q[l][3:0]};
        end
        1: begin
          write_address[l] = carry3.pixel + 32'(channel3[l]);
          write_data[l] = clamped_q[l][7:0];
        end
        default: begin
          write_address[l] = carry3.pixel + 2 * 32'(channel3[l]);
          write_data[l] = clamped_q[l][7:0];
        end
      endcase
      if (carry3.valid && on3[l]) begin
        write_enable[l] = carry3.size == 0 ? (channel3[l][0] ? 2'b10 : 2'b01) : 2'b11;
        if (carry3.size == 2) write_enable[LANES+l] = 2'b11;
      end
    end
  assign finish.valid = carry3.valid && carry3.ends;
  assign finish.signal = carry3.signal;
  assign finish.index = carry3.index;
endmodule
