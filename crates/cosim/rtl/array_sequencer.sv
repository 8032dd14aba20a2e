// The array's sequencer: takes its instructions, counts passes, steps, elements, lines and taps, and
// says what row 0 and column 0 do in this cycle. The first operands are read in the cycle of the start.
module array_sequencer
  import systole_pkg::*;
  import isa_pkg::*;
#(
    parameter int OPERAND_BITS = 8
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head,
    input  logic start,
    output logic ready,
    output logic setup_finished,
    output row_control_t row,
    output column_control_t column,
    output latch_t latch,
    output landing_t landing,
    output finish_t preload_read,        // a preload reads its last line
    output logic [31:0] fold_k           // first step of the fold that streams
);
  // ---- decoder, and registers that setup instructions write
  matmul_t matmul;
  stream_t stream;
  preload_t preload;
  input_t in;
  kernel_t kernel;
  logic is_matmul, is_stream, is_preload, is_setup;
  logic wide_a, wide_w;
  always_comb begin
    matmul = head.bits;
    is_matmul = matmul.opcode == OP_MATMUL;
    is_stream = matmul.opcode == OP_STREAM;
    is_preload = matmul.opcode == OP_PRELOAD;
    is_setup = matmul.opcode == OP_INPUT || matmul.opcode == OP_KERNEL;
    wide_a = OPERAND_BITS > 4 && in.wide_activations;
    wide_w = OPERAND_BITS > 4 && in.wide_weights;
  end
  assign setup_finished = start && is_setup;
  always_ff @(posedge clk) begin
    if (start && matmul.opcode == OP_INPUT) in <= head.bits;
    if (start && matmul.opcode == OP_KERNEL) kernel <= head.bits;
  end
  wire is_os = cfg.dataflow == OUTPUT_STATIONARY;
  wire is_ws = cfg.dataflow == WEIGHT_STATIONARY;
  wire is_is = cfg.dataflow == INPUT_STATIONARY;

  // ---- when the next instruction may start
  logic [17:0] n_passes;                 // of the head's stream
  logic [17:0] n_preload;                // cycles of a preload
  logic [17:0] stream_busy;              // cycles until another stream may start
  logic [17:0] preload_busy;             // cycles until the chain is full
  logic [17:0] chain_busy;               // cycles until the chain may move
  logic [17:0] drain_gap;                // cycles until a stream may end that drains
  logic chain_full;                      // no stream has taken the chain's values
  always_comb begin
    stream = head.bits;
    preload = head.bits;
    n_passes = is_stream ? 18'(stream.n_minus_1) + 1 : 18'(matmul.n_steps);
    n_passes = n_passes << (2'(wide_a) + 2'(wide_w));
    n_preload = 18'(cfg.rows) << (is_is ? wide_a : wide_w);
    if (is_preload) ready = preload_busy == 0 && chain_busy == 0;
    else ready = preload_busy == 0 && stream_busy == 0
        && !(is_matmul && matmul.last && n_passes < drain_gap);
  end
  always_ff @(posedge clk) begin
    if (reset) begin
      stream_busy <= 0;
      preload_busy <= 0;
      chain_busy <= 0;
      drain_gap <= 0;
      chain_full <= 0;
    end else begin
      if (stream_busy != 0) stream_busy <= stream_busy - 1;
      if (preload_busy != 0) preload_busy <= preload_busy - 1;
      if (chain_busy != 0) chain_busy <= chain_busy - 1;
      if (drain_gap != 0) drain_gap <= drain_gap - 1;
      if (start && is_matmul) begin
        stream_busy <= n_passes - 1;
        if (!cfg.shadow && matmul.last)
          stream_busy <= n_passes + 2 * 18'(cfg.rows) + 18'(cfg.cols) - 2;
        if (matmul.last) drain_gap <= n_passes + 18'(cfg.rows) - 1;
      end
      if (start && is_preload) begin
        preload_busy <= n_preload - 1;
        chain_full <= 1;
      end
      if (start && is_stream) begin
        stream_busy <= n_passes - 1;
        chain_full <= 0;
        if (!cfg.shadow) chain_busy <= n_passes + 18'(cfg.rows) + 18'(cfg.cols) - 1;
        else if (chain_full) chain_busy <= 18'(cfg.rows) - 1;
      end
    end
  end

  // ---- passes of a matmul or stream
  entry_t running_q, running;
  logic active, go, is_first, last_pass, last_step, wide_step;
  logic [15:0] step_q, step, n_steps;    // steps of a matmul, elements of a stream
  logic [1:0] pass_q, pass;
  logic [13:0] oy_q, ox_q, oy, ox;       // pixel of row 0, or of the element
  matmul_t m;
  stream_t s;
  always_comb begin
    running = start && (is_matmul || is_stream) ? head : running_q;
    m = running.bits;
    s = running.bits;
    is_first = start && (is_matmul || is_stream);
    go = is_first || active;
    step = is_first ? 0 : step_q;
    pass = is_first ? 0 : pass_q;
    oy = is_first ? 14'(m.y) : oy_q;     // a stream's pixel stands where a matmul's does
    ox = is_first ? 14'(m.x) : ox_q;
    n_steps = is_os ? m.n_steps : 16'(s.n_minus_1) + 1;
    wide_step = wide_a ^ wide_w;
    last_pass = pass == (wide_a && wide_w ? 2'd3 : wide_step ? 2'd1 : 2'd0);
    last_step = step + 1 == n_steps;
  end
  always_ff @(posedge clk) begin
    running_q <= running;
    active <= go && !(last_pass && last_step) && !reset;
    if (go) begin
      pass_q <= last_pass ? 0 : pass + 1;
      step_q <= last_pass ? step + 1 : step;
      oy_q <= oy;
      ox_q <= ox;
      if (is_ws && last_pass) begin
        ox_q <= ox + 1 == kernel.output_width ? 0 : ox + 1;
        if (ox + 1 == kernel.output_width) oy_q <= oy + 1;
      end
    end
  end
  // Which nibbles meet in this pass. The left operand is the one that streams through the rows.
  wire high_a = wide_a && pass[0];
  wire high_w = wide_w && (wide_a ? pass[1] : pass[0]);

  // ---- lines of a preload
  preload_t p_q, p;
  logic loading, load_go, last_plane, line_in_use;
  logic [8:0] line_q, line;
  logic plane_q, plane;
  logic [31:0] p_index_q;
  always_comb begin
    p = start && is_preload ? preload : p_q;
    load_go = (start && is_preload) || loading;
    line = start && is_preload ? 0 : line_q;
    plane = start && is_preload ? 0 : plane_q;
    last_plane = plane == (is_is ? wide_a : wide_w);
    line_in_use = line <= 9'(p.rows_minus_1);
  end
  always_ff @(posedge clk) begin
    p_q <= p;
    if (start && is_preload) p_index_q <= head.index;
    loading <= load_go && !(last_plane && line + 1 == cfg.rows) && !reset;
    if (load_go) begin
      plane_q <= !last_plane;
      line_q <= last_plane ? line + 1 : line;
    end
  end

  // ---- taps: the reduction goes on from matmul to matmul, from preload to preload
  logic [15:0] channel_q, channel;
  logic [7:0] dy_q, dx_q, dy, dx;
  logic [31:0] k_q, k, preload_k, fold_k_q, fold_last_k_q, fold_last_k;
  logic begins, tap_done;
  tap_t tap;
  always_comb begin
    begins = start && ((is_matmul && matmul.first) || (is_preload && preload.first));
    channel = begins ? 0 : channel_q;
    dy = begins ? 0 : dy_q;
    dx = begins ? 0 : dx_q;
    k = begins ? 0 : k_q;
    tap_done = is_os ? go && last_pass : load_go && last_plane && line_in_use;
    tap.y = dy;
    tap.x = dx;
    tap.channel = channel;
    fold_k = is_first ? preload_k : fold_k_q;
    fold_last_k = is_first ? k_q - 1 : fold_last_k_q;
  end
  always_ff @(posedge clk) begin
    k_q <= tap_done ? k + 1 : k;
    channel_q <= channel;
    dx_q <= dx;
    dy_q <= dy;
    if (tap_done) begin
      channel_q <= channel + 1;
      if (channel + 1 == in.n_channels) begin
        channel_q <= 0;
        dx_q <= dx + 1;
        if (dx + 1 == kernel.width) begin
          dx_q <= 0;
          dy_q <= dy + 1;
        end
      end
    end
    if (start && is_preload) preload_k <= k;
    fold_k_q <= fold_k;
    fold_last_k_q <= fold_last_k;
  end

  // ---- what row 0 and column 0 do
  // The first pass of the first stream after a preload takes the chain's values.
  wire takes = start && is_stream && chain_full;
  activation_read_t read;                // without pixel
  always_comb begin
    read = '0;
    read.wide = wide_a;
    read.is_signed = in.signed_activations;
    read.output_width = kernel.output_width;
    read.tap = tap;
    read.stride_y = kernel.stride_y;
    read.stride_x = kernel.stride_x;
    read.dilation_y = kernel.dilation_y;
    read.dilation_x = kernel.dilation_x;
    read.pad_top = kernel.pad_top;
    read.pad_left = kernel.pad_left;
    read.channel = in.channel;
    read.address = in.address;
    read.width = in.width;
    read.height = in.height;
    read.pixel_bytes = in.pixel_bytes;

    row.activation = read;
    row.activation.valid = go && !is_is;
    row.activation.high = high_a;
    row.activation.oy = oy;
    row.activation.ox = ox;
    row.weight.valid = go && is_is;
    row.weight.high = high_w;
    row.weight.wide = wide_w;
    row.weight.line = 20'(s.weight_line) + (wide_w ? {3'b0, step, high_w} : {4'b0, step});
    row.take = takes;

    column.pass.valid = go;
    column.pass.first = pass == 0;
    column.pass.last = last_pass;
    column.pass.init = is_os && m.first && step == 0;
    column.pass.fold_last = is_os && m.last && last_step && last_pass;
    column.pass.take = takes;
    column.upper_high = is_is ? high_a : high_w;
    column.reads_bias = go && (is_os ? column.pass.init : !s.accumulate);
    column.parameter_index = is_os ? m.parameter_ : s.parameter_ + (is_is ? 12'(step) : 0);
    column.preloads = load_go;
    column.chain_shift = load_go && plane == 0;
    column.in_use = line_in_use;
    column.weight.valid = is_os ? go : is_ws && load_go && line_in_use;
    column.weight.high = is_os ? high_w : plane;
    column.weight.wide = wide_w;
    column.weight.line = is_os ? 20'(m.weight_line) + (wide_w ? {3'b0, step, high_w} : {4'b0, step})
        : 20'(p.weight_line) + (wide_w ? {10'b0, line, plane} : {11'b0, line});
    column.activation = read;
    column.activation.valid = is_is && load_go && line_in_use;
    column.activation.high = plane;
    column.activation.oy = 14'(p.y);
    column.activation.ox = 14'(p.x);

    latch.valid = load_go && plane == 0;
    latch.row = 8'(line);
    latch.in_use = line_in_use;
    latch.tap = tap;

    preload_read.valid = load_go && last_plane && line + 1 == cfg.rows;
    preload_read.signal_mask = 0;        // its values are free when the stream signals
    preload_read.index = start && is_preload ? head.index : p_index_q;
  end
  // ---- what ends in this cycle
  always_comb begin
    landing = '0;
    landing.valid = go && last_pass && (last_step || !is_os);
    landing.ends = last_step;
    landing.signal_mask = m.signal_mask;
    landing.index = running.index;
    if (is_os) begin
      landing.writes = m.last;
      landing.counts = m.last;
      landing.block = m.block;
      landing.rows_minus_1 = m.rows_minus_1;
      landing.cols_minus_1 = m.cols_minus_1;
      landing.channel = 21'(m.channel);
    end else begin
      landing.writes = 1;
      landing.accumulate = s.accumulate;
      landing.counts = s.last;
      landing.block = s.block;
      landing.row = s.row + step[11:0];
      landing.cols_minus_1 = s.cols_minus_1;
      landing.channel = 21'(s.channel) + (is_is ? 21'(step) : 0);
      landing.last_k = fold_last_k;
    end
  end
endmodule
