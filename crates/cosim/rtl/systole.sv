// The machine: frontend, tokens, units and memories. `trace_*` says when every instruction is
// issued, starts and ends; the end is the cycle after the one in which it is reported.
module systole
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16,
    parameter int LANES = 16,
    parameter int N_BLOCKS = 16,
    parameter int ACTIVATION_BYTES = 1 << 17,
    parameter int WEIGHT_BYTES = 1 << 16,
    parameter int N_PARAMETERS = 1024,
    parameter int N_CHANNELS = 4096,
    parameter int QUEUE_DEPTH = 64,
    parameter int DRAM_BYTES = 1 << 23,
    parameter int BUS_BYTES = 16,
    parameter int N_INSTRUCTIONS = 1 << 18
) (
    input  logic clk,
    input  logic reset,
    input  logic [31:0] n_instructions,
    input  logic [8:0] cfg_rows, cfg_cols,
    input  logic cfg_shadow,
    input  logic [5:0] cfg_acc_bits,
    input  logic cfg_saturate,
    input  logic [1:0] cfg_rounding,
    input  logic [10:0] cfg_lanes,
    input  logic [12:0] cfg_queue_depth,
    input  logic [15:0] cfg_max_tokens,
    input  logic [16:0] cfg_dram_latency,
    input  logic [10:0] cfg_bytes_per_cycle,
    input  logic [16:0] cfg_burst_bytes,
    input  logic [12:0] cfg_max_outstanding,
    output logic done,
    output logic fault,
    output logic trace_issue,
    output logic trace_fence,
    output logic [31:0] trace_issue_index,
    output logic [3:0] trace_start,
    output logic [31:0] trace_start_index [4],
    output logic [3:0] trace_setup_end,      // the starting instruction is through
    output logic [3:0] trace_end,
    output logic [31:0] trace_end_index [4],
    input  logic [20:0] host_channel,
    output logic [63:0] host_overflowed [COLS],
    output logic [63:0] host_touched [COLS],
    output logic [31:0] host_first_k [COLS],
    output logic signed [63:0] host_min [COLS],
    output logic signed [63:0] host_max [COLS]
);
  config_t cfg;
  assign cfg = {cfg_rows, cfg_cols, cfg_shadow, cfg_acc_bits, cfg_saturate, cfg_rounding, cfg_lanes,
      cfg_queue_depth, cfg_max_tokens, cfg_dram_latency, cfg_bytes_per_cycle, cfg_burst_bytes,
      cfg_max_outstanding};

  entry_t head [4];
  finish_t finish [4];
  logic [3:0] has_head, ready, granted, start, setup_finished;
  logic [3:0][4:0] n_finished;
  always_comb begin
    start = has_head & ready & granted;
    for (int u = 0; u < 4; u++) begin
      n_finished[u] = 5'(setup_finished[u]) + 5'(finish[u].valid);
      trace_start_index[u] = head[u].index;
      trace_end[u] = finish[u].valid;
      trace_end_index[u] = finish[u].index;
    end
    trace_start = start;
    trace_setup_end = setup_finished;
  end

  frontend #(.N_INSTRUCTIONS(N_INSTRUCTIONS), .QUEUE_DEPTH(QUEUE_DEPTH)) u_frontend (
      .clk, .reset, .cfg, .n_instructions, .take(start), .n_finished, .head, .has_head,
      .issue(trace_issue), .fence(trace_fence), .issue_index(trace_issue_index), .done);
  tokens u_tokens (.clk, .reset, .cfg, .head, .take(start), .finish, .granted, .overflow(fault));

  // ---- DMA and DRAM
  logic [1:0] offer, accept, burst_done, dma_memory;
  burst_t burst [2];
  finish_t dma_finish [2];
  logic load_valid;
  logic [BUS_BYTES-1:0] byte_enable;
  logic [24:0] chip_address;
  logic [7:0] load_data [BUS_BYTES], store_data [BUS_BYTES];
  dma #(.IS_STORE(0)) u_load_dma (
      .clk, .reset, .cfg, .head(head[LOAD]), .start(start[LOAD]), .ready(ready[LOAD]),
      .offer(offer[0]), .burst(burst[0]), .accept(accept[0]), .burst_done(burst_done[0]),
      .setup_finished(setup_finished[LOAD]));
  dma #(.IS_STORE(1)) u_store_dma (
      .clk, .reset, .cfg, .head(head[STORE]), .start(start[STORE]), .ready(ready[STORE]),
      .offer(offer[1]), .burst(burst[1]), .accept(accept[1]), .burst_done(burst_done[1]),
      .setup_finished(setup_finished[STORE]));
  dram #(.N_BYTES(DRAM_BYTES), .BUS_BYTES(BUS_BYTES)) u_dram (
      .clk, .reset, .cfg, .offer, .offered(burst), .accept, .burst_done, .finish(dma_finish),
      .memory(dma_memory), .load_valid, .byte_enable, .chip_address, .load_data, .store_data);
  assign finish[LOAD] = dma_finish[0];
  assign finish[STORE] = dma_finish[1];

  // ---- array
  logic activation_read [ROWS], weight_read [COLS], array_parameter_read [COLS];
  logic [31:0] activation_address [ROWS], weight_address [COLS];
  logic [7:0] activation_data [ROWS], weight_data [COLS];
  logic [11:0] array_parameter_index [COLS];
  logic [39:0] array_parameter_data [COLS];
  logic drain_valid [COLS];
  logic [3:0] drain_block [COLS];
  logic [7:0] drain_row [COLS];
  logic [20:0] drain_channel [COLS];
  result_t drain_result [COLS];
  array #(.ROWS(ROWS), .COLS(COLS)) u_array (
      .clk, .reset, .cfg, .head(head[ARRAY]), .start(start[ARRAY]), .ready(ready[ARRAY]),
      .finish(finish[ARRAY]), .setup_finished(setup_finished[ARRAY]),
      .activation_read, .activation_address, .activation_data, .weight_read, .weight_address,
      .weight_data, .parameter_read(array_parameter_read), .parameter_index(array_parameter_index),
      .parameter_data(array_parameter_data), .drain_valid, .drain_block, .drain_row,
      .drain_channel, .drain_result);

  for (genvar c = 0; c < COLS; c++) begin : counters
    overflow_counters #(.N_CHANNELS(N_CHANNELS)) u_counters (
        .clk, .write(drain_valid[c]), .channel(drain_channel[c]), .result(drain_result[c]),
        .host_channel, .host_overflowed(host_overflowed[c]), .host_touched(host_touched[c]),
        .host_first_k(host_first_k[c]), .host_min(host_min[c]), .host_max(host_max[c]));
  end

  // ---- post unit
  logic [3:0] block;
  logic [7:0] block_row, block_column [LANES];
  logic signed [31:0] block_data [LANES];
  logic post_parameter_read [LANES];
  logic [11:0] post_parameter_index [LANES];
  logic [39:0] post_parameter_data [LANES];
  logic post_read [2*LANES];
  logic [31:0] post_read_address [2*LANES], write_address [2*LANES];
  logic [7:0] post_read_data [2*LANES], write_data [2*LANES];
  logic [1:0] write_enable [2*LANES];
  post #(.LANES(LANES)) u_post (
      .clk, .reset, .cfg, .head(head[POST]), .start(start[POST]), .ready(ready[POST]),
      .finish(finish[POST]), .setup_finished(setup_finished[POST]), .block, .block_row,
      .block_column, .block_data, .parameter_read(post_parameter_read),
      .parameter_index(post_parameter_index), .parameter_data(post_parameter_data),
      .read_enable(post_read), .read_address(post_read_address), .read_data(post_read_data),
      .write_enable, .write_address, .write_data);
  accumulators #(.ROWS(ROWS), .COLS(COLS), .N_BLOCKS(N_BLOCKS), .LANES(LANES)) u_accumulators (
      .clk, .write(drain_valid), .write_block(drain_block), .write_row(drain_row),
      .write_data(drain_result), .read_block(block), .read_row(block_row),
      .read_column(block_column), .read_data(block_data));

  // ---- memories: ports of the array's rows first, then the post unit's
  localparam int N_READS = ROWS + 2 * LANES;
  logic read_enable [N_READS];
  logic [31:0] read_address [N_READS];
  logic [7:0] read_data [N_READS];
  logic parameter_read [COLS + LANES];
  logic [11:0] parameter_index [COLS + LANES];
  logic [39:0] parameter_data [COLS + LANES];
  always_comb begin
    for (int i = 0; i < ROWS; i++) begin
      read_enable[i] = activation_read[i];
      read_address[i] = activation_address[i];
      activation_data[i] = read_data[i];
    end
    for (int i = 0; i < 2 * LANES; i++) begin
      read_enable[ROWS+i] = post_read[i];
      read_address[ROWS+i] = post_read_address[i];
      post_read_data[i] = read_data[ROWS+i];
    end
    for (int i = 0; i < COLS; i++) begin
      parameter_read[i] = array_parameter_read[i];
      parameter_index[i] = array_parameter_index[i];
      array_parameter_data[i] = parameter_data[i];
    end
    for (int i = 0; i < LANES; i++) begin
      parameter_read[COLS+i] = post_parameter_read[i];
      parameter_index[COLS+i] = post_parameter_index[i];
      post_parameter_data[i] = parameter_data[COLS+i];
    end
  end
  scratchpad #(.N_BYTES(ACTIVATION_BYTES), .BUS_BYTES(BUS_BYTES), .N_READS(N_READS),
      .N_WRITES(2 * LANES)) u_activations (
      .clk, .dma_write(load_valid && dma_memory == 0), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .dma_read(!load_valid && |byte_enable),
      .dma_out(store_data), .read_enable, .read_address, .read_data, .write_enable,
      .write_address, .write_data);
  logic [7:0] unused_out [BUS_BYTES];
  logic [1:0] no_write [1];
  logic [31:0] no_address [1];
  logic [7:0] no_data [1];
  assign no_write[0] = 0;
  assign no_address[0] = 0;
  assign no_data[0] = 0;
  scratchpad #(.N_BYTES(WEIGHT_BYTES), .BUS_BYTES(BUS_BYTES), .N_READS(COLS), .N_WRITES(1))
      u_weights (
      .clk, .dma_write(load_valid && dma_memory == 1), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .dma_read(1'b0), .dma_out(unused_out),
      .read_enable(weight_read), .read_address(weight_address), .read_data(weight_data),
      .write_enable(no_write), .write_address(no_address), .write_data(no_data));
  parameters #(.N_ENTRIES(N_PARAMETERS), .BUS_BYTES(BUS_BYTES), .N_READS(COLS + LANES))
      u_parameters (
      .clk, .dma_write(load_valid && dma_memory == 2), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .read_enable(parameter_read),
      .read_index(parameter_index), .read_data(parameter_data));
endmodule
