// The PE array: the sequencer of the stream, the skewed operands, the grid, and the drain.
module array
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head,
    input  logic start,
    output logic ready,
    output finish_t finish,          // a matmul's last cycle
    output logic setup_finished,
    // a port of the activation scratchpad for every row, of the weight scratchpad for every column
    output logic activation_read [ROWS],
    output logic [31:0] activation_address [ROWS],
    input  logic [7:0] activation_data [ROWS],
    output logic weight_read [COLS],
    output logic [31:0] weight_address [COLS],
    input  logic [7:0] weight_data [COLS],
    output logic parameter_read [COLS],
    output logic [11:0] parameter_index [COLS],
    input  logic [39:0] parameter_data [COLS],
    // drain: column by column
    output logic drain_valid [COLS],
    output logic [3:0] drain_block [COLS],
    output logic [7:0] drain_row [COLS],
    output logic [20:0] drain_channel [COLS],
    output result_t drain_result [COLS]
);
  // ---- registers that setup instructions write
  logic [127:0] input_q, kernel_q;
  wire [5:0] op = head.bits[5:0];
  wire is_matmul = op == OP_MATMUL;
  assign setup_finished = start && !is_matmul;
  always_ff @(posedge clk) begin
    if (start && op == OP_INPUT) input_q <= head.bits;
    if (start && op == OP_KERNEL) kernel_q <= head.bits;
  end
  wire wide_a = input_q[114];
  wire wide_w = input_q[116];
  wire [15:0] n_channels = input_q[113:98];
  wire [7:0] kernel_width = kernel_q[29:22];

  // ---- sequencer: one pass a cycle, the first in the cycle of the start
  entry_t running;
  logic active;
  logic [15:0] step_q;                 // steps done
  logic [1:0] pass_q;
  logic [15:0] channel_q;              // reduction counters, kept over a fold's matmuls
  logic [7:0] dy_q, dx_q;
  logic [17:0] stream;                 // cycles of the head's stream

  entry_t current;
  logic go, is_first_step, last_pass, last_step, stream_ends, wide_step;
  logic [15:0] step, channel;
  logic [1:0] pass;
  logic [7:0] dy, dx;
  always_comb begin
    wide_step = wide_a ^ wide_w;
    stream = 18'(head.bits[91:76]) << (2'(wide_a) + 2'(wide_w));
    current = start && is_matmul ? head : running;
    go = (start && is_matmul) || active;
    step = start ? 0 : step_q;
    pass = start ? 0 : pass_q;
    channel = channel_q;
    dy = dy_q;
    dx = dx_q;
    if (start && current.bits[92]) begin
      channel = 0;
      dy = 0;
      dx = 0;
    end
    is_first_step = current.bits[92] && step == 0;
    last_pass = pass == (wide_a && wide_w ? 2'd3 : wide_step ? 2'd1 : 2'd0);
    last_step = step + 1 == current.bits[91:76];
    stream_ends = go && last_pass && last_step;
  end
  wire high_a = wide_a && pass[0];
  wire high_w = wide_w && (wide_a ? pass[1] : pass[0]);

  logic [17:0] busy;                   // cycles until the unit is ready
  logic [17:0] drain_gap;              // cycles until a stream may end that drains
  wire [17:0] fill_and_drain = 18'(cfg.rows) * 2 + 18'(cfg.cols) - 1;
  assign ready = busy == 0 && !(is_matmul && head.bits[93] && stream < drain_gap);
  always_ff @(posedge clk) begin
    if (reset) begin
      active <= 0;
      busy <= 0;
      drain_gap <= 0;
      channel_q <= 0;
      dy_q <= 0;
      dx_q <= 0;
    end else begin
      if (drain_gap != 0) drain_gap <= drain_gap - 1;
      if (busy != 0) busy <= busy - 1;
      if (start && is_matmul) begin
        running <= head;
        busy <= cfg.shadow || !head.bits[93] ? stream - 1 : stream + fill_and_drain - 1;
        if (head.bits[93]) drain_gap <= stream + 18'(cfg.rows) - 1;
      end
      active <= go && !stream_ends;
      if (go) begin
        pass_q <= last_pass ? 0 : pass + 1;
        step_q <= last_pass ? step + 1 : step;
        channel_q <= channel;
        dx_q <= dx;
        dy_q <= dy;
        if (last_pass) begin
          channel_q <= channel + 1;
          if (channel + 1 == n_channels) begin
            channel_q <= 0;
            dx_q <= dx + 1;
            if (dx + 1 == kernel_width) begin
              dx_q <= 0;
              dy_q <= dy + 1;
            end
          end
        end
      end
    end
  end

  // ---- skew: the pass goes down the rows, a pixel further each, and along the columns
  row_control_t row_first, row_here [ROWS];
  column_control_t column_first, column_here [COLS];
  always_comb begin
    row_first.valid = go;
    row_first.wide = wide_a;
    row_first.is_signed = input_q[115];
    row_first.high = high_a;
    row_first.oy = 14'(current.bits[25:14]);
    row_first.ox = 14'(current.bits[37:26]);
    row_first.output_width = kernel_q[91:78];
    row_first.ty = 19'(17'(dy) * 17'(kernel_q[53:46])) - 19'(kernel_q[69:62]);
    row_first.tx = 19'(17'(dx) * 17'(kernel_q[61:54])) - 19'(kernel_q[77:70]);
    row_first.stride_y = kernel_q[37:30];
    row_first.stride_x = kernel_q[45:38];
    row_first.channel = 18'(input_q[97:82]) + 18'(channel);
    row_first.address = input_q[37:14];
    row_first.width = input_q[51:38];
    row_first.height = input_q[65:52];
    row_first.pixel_bytes = input_q[81:66];

    column_first.valid = go;
    column_first.first_pass = pass == 0;
    column_first.last_pass = last_pass;
    column_first.is_signed = !wide_w || high_w;
    column_first.init = is_first_step;
    column_first.fold_last = current.bits[93] && last_step && last_pass;
    column_first.line = 20'(current.bits[71:54]) + (wide_w ? {3'b0, step, high_w} : {4'b0, step});
    column_first.parameter_index = current.bits[105:94];
  end
  wire [8:0] line_bytes = (cfg.cols + 9'd1) >> 1;

  logic signed [4:0] a_edge [ROWS];
  logic a_high_edge [ROWS];
  for (genvar r = 0; r < ROWS; r++) begin : row
    row_control_t here;
    logic signed [22:0] iy, ix;
    logic inside_tile, take_high;
    logic [3:0] nibble;
    if (r == 0) begin : g
      assign here = row_first;
    end else begin : g
      row_control_t q, above;
      always_comb begin
        above = row_here[r-1];
        above.ox = row_here[r-1].ox + 1;
        if (above.ox == row_here[r-1].output_width) begin
          above.ox = 0;
          above.oy = row_here[r-1].oy + 1;
        end
      end
      always_ff @(posedge clk) begin
        q <= above;
        if (reset) q.valid <= 0;
      end
      assign here = q;
    end
    assign row_here[r] = here;
    always_comb begin
      iy = 23'(32'(here.oy) * 32'(here.stride_y)) + 23'(here.ty);
      ix = 23'(32'(here.ox) * 32'(here.stride_x)) + 23'(here.tx);
      inside_tile = iy >= 0 && ix >= 0 && iy < 23'(here.height) && ix < 23'(here.width);
      activation_read[r] = here.valid && inside_tile;
      activation_address[r] = 32'(here.address)
          + (32'(iy) * 32'(here.width) + 32'(ix)) * 32'(here.pixel_bytes)
          + 32'(here.wide ? here.channel : here.channel >> 1);
      take_high = here.wide ? here.high : here.channel[0];
      nibble = take_high ? activation_data[r][7:4] : activation_data[r][3:0];
      a_edge[r] = {here.is_signed && (!here.wide || here.high) && nibble[3], nibble};
      a_high_edge[r] = here.high;
    end
  end

  logic signed [4:0] w_edge [COLS];
  logic signed [31:0] bias_edge [COLS];
  for (genvar c = 0; c < COLS; c++) begin : column
    column_control_t here;
    logic [3:0] nibble;
    if (c == 0) begin : g
      assign here = column_first;
    end else begin : g
      column_control_t q;
      always_ff @(posedge clk) begin
        q <= column_here[c-1];
        if (reset) q.valid <= 0;
      end
      assign here = q;
    end
    assign column_here[c] = here;
    always_comb begin
      weight_read[c] = here.valid;
      weight_address[c] = 32'(here.line) * 32'(line_bytes) + c / 2;
      nibble = c % 2 == 1 ? weight_data[c][7:4] : weight_data[c][3:0];
      w_edge[c] = {here.is_signed && nibble[3], nibble};
      parameter_read[c] = here.valid && here.init;
      parameter_index[c] = here.parameter_index + 12'(c);
      bias_edge[c] = 32'($signed(parameter_data[c][15:0])) <<< parameter_data[c][20:16];
    end
  end

  // ---- the end of the stream travels until the last value has landed
  localparam int N = 2 * ROWS + COLS;
  stream_end_t ends [N];
  stream_end_t end_now;
  always_comb begin
    end_now.valid = stream_ends;
    end_now.last = current.bits[93];
    end_now.block = current.bits[75:72];
    end_now.rows_minus_1 = current.bits[45:38];
    end_now.cols_minus_1 = current.bits[53:46];
    end_now.channel = current.bits[125:106];
    end_now.signal = current.bits[13:10];
    end_now.index = current.index;
  end
  wire [31:0] last_landing = 32'(cfg.rows) * 2 + 32'(cfg.cols) - 2;
  always_ff @(posedge clk) begin
    for (int i = 1; i < N; i++) begin
      ends[i] <= ends[i-1];
      if (reset) ends[i].valid <= 0;
    end
    ends[0] <= end_now;
    if (reset) ends[0].valid <= 0;
  end
  assign finish.valid = ends[last_landing].valid;
  assign finish.signal = ends[last_landing].signal;
  assign finish.index = ends[last_landing].index;

  // ---- drain
  result_t bottom [COLS];
  logic high_w_column [COLS];
  logic [8:0] drain_step [COLS];
  logic drain_active [COLS];

  for (genvar c = 0; c < COLS; c++) begin : drain
    if (c == 0) begin : g
      assign high_w_column[c] = high_w;
    end else begin : g
      logic q;
      always_ff @(posedge clk) q <= high_w_column[c-1];
      assign high_w_column[c] = q;
    end

    // One row a cycle, bottom row first, from the cycle after the bottom PE's last pass.
    stream_end_t info_q, info;
    logic [8:0] left_q, step_q;
    logic begins;
    always_comb begin
      begins = ends[32'(cfg.rows) + c].valid && ends[32'(cfg.rows) + c].last;
      info = begins ? ends[32'(cfg.rows) + c] : info_q;
      drain_active[c] = begins || left_q != 0;
      drain_step[c] = begins ? 0 : step_q;
      drain_row[c] = 8'(cfg.rows - 1 - drain_step[c]);
      drain_valid[c] = drain_active[c] && drain_row[c] <= info.rows_minus_1
          && 8'(c) <= info.cols_minus_1;
      drain_block[c] = info.block;
      drain_channel[c] = 21'(info.channel) + 21'(c);
      drain_result[c] = bottom[c];
    end
    always_ff @(posedge clk) begin
      if (drain_active[c]) begin
        info_q <= info;
        step_q <= drain_step[c] + 1;
        left_q <= begins ? cfg.rows - 1 : left_q - 1;
      end
      if (reset) left_q <= 0;
    end
  end

  // ---- the grid; control goes down with the weights
  logic valid_edge [COLS], first_edge [COLS], last_edge [COLS], init_edge [COLS];
  logic fold_last_edge [COLS];
  always_comb
    for (int c = 0; c < COLS; c++) begin
      valid_edge[c] = column_here[c].valid;
      first_edge[c] = column_here[c].first_pass;
      last_edge[c] = column_here[c].last_pass;
      init_edge[c] = column_here[c].init;
      fold_last_edge[c] = column_here[c].fold_last;
    end
  grid #(.ROWS(ROWS), .COLS(COLS)) u_grid (
      .clk, .reset, .cfg, .a_edge, .a_high_edge, .w_edge, .w_high_edge(high_w_column), .valid_edge,
      .first_edge, .last_edge, .init_edge, .fold_last_edge, .bias_edge, .drain_active, .drain_step,
      .bottom);
endmodule
