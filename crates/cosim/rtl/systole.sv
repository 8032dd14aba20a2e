// The machine: frontend, tokens, units and memories.
//
// Parameters say what is built. With RUN_TIME_CONFIG = 1 they are the largest machine, and the `cfg_*`
// inputs, latched during reset, choose one within it: so one simulator serves all machines. With
// RUN_TIME_CONFIG = 0 the machine is what the parameters say, the inputs are ignored, and synthesis
// removes what it does not need.
//
//   ROWS, COLS          array                        DATAFLOW         0 output-, 1 weight-, 2 input-stationary
//   SHADOW              shadow accumulators (output-stationary) or shadow operands
//   OPERAND_BITS        widest operand: 4, or 8 in nibble passes
//   ACC_BITS            accumulator width            SATURATE         1 saturates, 0 wraps
//   N_BLOCK_ROWS        rows of all accumulator blocks together       BLOCK_ROWS  of one
//   LANES               of the post unit             ROUNDING         0 half up, 1 half away from zero, 2 half even, 3 floor
//   ACTIVATION_BYTES, WEIGHT_BYTES, N_PARAMETERS     on-chip memories
//   QUEUE_DEPTH         of every unit's queue        MAX_TOKENS       of every counter
//   DRAM_BYTES, DRAM_LATENCY, BUS_BYTES (a power of two), BURST_BYTES, MAX_OUTSTANDING
//   N_INSTRUCTIONS      instruction memory           N_CHANNELS       overflow counters (simulation only)
//
// Of operands, 4 bits are the unit of all formats in memory, and therefore of the multipliers too.
//
// `trace_*` says when every instruction is issued, starts and ends; the end is the cycle after the
// one in which it is reported.
module systole
  import systole_pkg::*;
#(
    parameter bit RUN_TIME_CONFIG = 1,
    parameter int ROWS = 16,
    parameter int COLS = 16,
    parameter int DATAFLOW = 0,
    parameter bit SHADOW = 1,
    parameter int OPERAND_BITS = 8,
    parameter int ACC_BITS = 32,
    parameter bit SATURATE = 1,
    parameter int N_BLOCK_ROWS = 4096,
    parameter int BLOCK_ROWS = 16,
    parameter int LANES = 16,
    parameter int ROUNDING = 2,
    parameter int ACTIVATION_BYTES = 1 << 17,
    parameter int WEIGHT_BYTES = 1 << 16,
    parameter int N_PARAMETERS = 1024,
    parameter int QUEUE_DEPTH = 64,
    parameter int MAX_TOKENS = 255,
    parameter int DRAM_BYTES = 1 << 24,
    parameter int DRAM_LATENCY = 40,
    parameter int BUS_BYTES = 64,
    parameter int BURST_BYTES = 64,
    parameter int MAX_OUTSTANDING = 64,
    parameter int N_INSTRUCTIONS = 1 << 18,
    parameter int N_CHANNELS = 1 << 14
) (
    input  logic clk,
    input  logic reset,
    input  logic [31:0] n_instructions,
    input  logic [8:0] cfg_rows, cfg_cols,
    input  logic [1:0] cfg_dataflow,
    input  logic cfg_shadow,
    input  logic [5:0] cfg_acc_bits,
    input  logic cfg_saturate,
    input  logic [12:0] cfg_block_rows,
    input  logic [1:0] cfg_rounding,
    input  logic [10:0] cfg_lanes,
    input  logic [12:0] cfg_queue_depth,
    input  logic [15:0] cfg_max_tokens,
    input  logic [16:0] cfg_dram_latency,
    input  logic [10:0] cfg_bytes_per_cycle,
    input  logic [16:0] cfg_burst_bytes,
    input  logic [12:0] cfg_max_outstanding,
    output logic done,
    output logic token_overflow,             // the run ends here, and `fault_index` says why
    output logic deadlock,
    output logic [31:0] fault_index,
    output logic trace_issue,
    output logic trace_fence,
    output logic [31:0] trace_issue_index,
    output logic [3:0] trace_start,
    output logic [31:0] trace_start_index [4],
    output logic [3:0] trace_setup_end,      // the starting instruction is through
    output logic [3:0] trace_end,
    output logic [31:0] trace_end_index [4],
    output logic trace_preload_end,          // may meet the end of a stream
    output logic [31:0] trace_preload_end_index,
    input  logic [20:0] host_channel,
    output logic [63:0] host_overflowed,
    output logic [63:0] host_touched,
    output logic [31:0] host_first_k,
    output logic signed [63:0] host_min,
    output logic signed [63:0] host_max
);
  if (OPERAND_BITS != 4 && OPERAND_BITS != 8) $error("OPERAND_BITS is 4 or 8");
  if (ACC_BITS < 8 || ACC_BITS > 32) $error("ACC_BITS is 8 to 32");
  if (2 ** $clog2(BUS_BYTES) != BUS_BYTES) $error("BUS_BYTES is a power of two");

  config_t fixed, cfg_q, cfg;
  assign fixed = {9'(ROWS), 9'(COLS), 2'(DATAFLOW), SHADOW, 6'(ACC_BITS), SATURATE, 13'(BLOCK_ROWS),
      2'(ROUNDING), 11'(LANES), 13'(QUEUE_DEPTH), 16'(MAX_TOKENS), 17'(DRAM_LATENCY),
      11'(BUS_BYTES), 17'(BURST_BYTES), 13'(MAX_OUTSTANDING)};
  assign cfg = RUN_TIME_CONFIG ? cfg_q : fixed;
  always_ff @(posedge clk)
    if (reset)
      cfg_q <= {cfg_rows, cfg_cols, cfg_dataflow, cfg_shadow, cfg_acc_bits, cfg_saturate,
          cfg_block_rows, cfg_rounding, cfg_lanes, cfg_queue_depth, cfg_max_tokens,
          cfg_dram_latency, cfg_bytes_per_cycle, cfg_burst_bytes, cfg_max_outstanding};

  entry_t head [4];
  finish_t finish [4], preload_finish;
  logic [3:0] has_head, ready, granted, start, setup_finished;
  logic [3:0][4:0] n_finished;
  logic all_wait;
  logic [31:0] oldest_index, overflow_index;
  assign start = has_head & ready & granted;
  always_comb begin
    for (int u = 0; u < 4; u++) begin
      n_finished[u] = 5'(setup_finished[u]) + 5'(finish[u].valid);
      trace_start_index[u] = head[u].index;
      trace_end[u] = finish[u].valid;
      trace_end_index[u] = finish[u].index;
    end
    n_finished[ARRAY] += 5'(preload_finish.valid);
    trace_start = start;
    trace_setup_end = setup_finished;
    trace_preload_end = preload_finish.valid;
    trace_preload_end_index = preload_finish.index;
  end

  frontend #(.N_INSTRUCTIONS(N_INSTRUCTIONS), .QUEUE_DEPTH(QUEUE_DEPTH)) u_frontend (
      .clk, .reset, .cfg, .n_instructions, .take(start), .n_finished, .head, .has_head,
      .issue(trace_issue), .fence(trace_fence), .issue_index(trace_issue_index), .done,
      .all_wait, .oldest_index);
  tokens u_tokens (
      .clk, .reset, .cfg, .head, .take(start), .finish, .granted, .overflow(token_overflow),
      .overflow_index);
  assign deadlock = all_wait && !trace_issue && start == 0 && !done;
  assign fault_index = token_overflow ? overflow_index : oldest_index;

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
  dram #(.N_BYTES(DRAM_BYTES), .BUS_BYTES(BUS_BYTES), .MAX_BURSTS(2 ** $clog2(2 * MAX_OUTSTANDING))) u_dram (
      .clk, .reset, .cfg, .offer, .offered(burst), .accept, .burst_done, .finish(dma_finish),
      .memory(dma_memory), .load_valid, .byte_enable, .chip_address, .load_data, .store_data);
  assign finish[LOAD] = dma_finish[0];
  assign finish[STORE] = dma_finish[1];

  // ---- memories. Ports of the activation scratchpad: array rows, array columns, post lanes; of the
  // weight scratchpad: the same; of the parameter table: array columns, post lanes.
  localparam int EDGE = ROWS + COLS;
  logic activation_read [EDGE+2*LANES], weight_read [EDGE+LANES], parameter_read [COLS+LANES];
  logic [31:0] activation_address [EDGE+2*LANES], weight_address [EDGE+LANES];
  logic [7:0] activation_data [EDGE+2*LANES], weight_data [EDGE+LANES];
  logic [11:0] parameter_index [COLS+LANES];
  parameter_t parameter_data [COLS+LANES];
  logic [1:0] write_enable [2*LANES];
  logic [31:0] write_address [2*LANES];
  logic [7:0] write_data [2*LANES];
  scratchpad #(.N_BYTES(ACTIVATION_BYTES), .BUS_BYTES(BUS_BYTES), .N_READS(EDGE + 2 * LANES),
      .N_WRITES(2 * LANES)) u_activations (
      .clk, .dma_write(load_valid && dma_memory == ACTIVATIONS), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .dma_read(!load_valid && |byte_enable),
      .dma_out(store_data), .read_enable(activation_read), .read_address(activation_address),
      .read_data(activation_data), .write_enable, .write_address, .write_data);
  logic [7:0] unused_out [BUS_BYTES];
  logic [1:0] no_write [1];
  logic [31:0] no_address [1];
  logic [7:0] no_data [1];
  assign no_write[0] = 0;
  assign no_address[0] = 0;
  assign no_data[0] = 0;
  scratchpad #(.N_BYTES(WEIGHT_BYTES), .BUS_BYTES(BUS_BYTES), .N_READS(EDGE + LANES),
      .N_WRITES(1)) u_weights (
      .clk, .dma_write(load_valid && dma_memory == WEIGHTS), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .dma_read(1'b0), .dma_out(unused_out),
      .read_enable(weight_read), .read_address(weight_address), .read_data(weight_data),
      .write_enable(no_write), .write_address(no_address), .write_data(no_data));
  parameters #(.N_ENTRIES(N_PARAMETERS), .BUS_BYTES(BUS_BYTES), .N_READS(COLS + LANES))
      u_parameters (
      .clk, .dma_write(load_valid && dma_memory == PARAMETERS), .dma_enable(byte_enable),
      .dma_address(chip_address), .dma_in(load_data), .read_enable(parameter_read),
      .read_index(parameter_index), .read_data(parameter_data));

  // ---- array
  logic signed [ACC_BITS-1:0] top;
  logic block_write [COLS];
  logic [15:0] block_row [COLS];
  logic signed [ACC_BITS-1:0] block_before [COLS], block_after [COLS];
  logic [31:0] fold_k;
  pass_t pass [ROWS*COLS];
  logic signed [ACC_BITS-1:0] bias [ROWS*COLS];
  logic signed [2*OPERAND_BITS+1:0] product [ROWS*COLS];
  logic overflowed [ROWS*COLS], bottom_overflowed [COLS], drain_active [COLS];
  logic [8:0] drain_step [COLS];
  landing_t landing [COLS];
  array #(.ROWS(ROWS), .COLS(COLS), .OPERAND_BITS(OPERAND_BITS), .ACC_BITS(ACC_BITS)) u_array (
      .clk, .reset, .cfg, .top, .head(head[ARRAY]), .start(start[ARRAY]), .ready(ready[ARRAY]),
      .finish(finish[ARRAY]), .preload_finish, .setup_finished(setup_finished[ARRAY]),
      .activation_read(activation_read[0:EDGE-1]),
      .activation_address(activation_address[0:EDGE-1]),
      .activation_data(activation_data[0:EDGE-1]), .weight_read(weight_read[0:EDGE-1]),
      .weight_address(weight_address[0:EDGE-1]), .weight_data(weight_data[0:EDGE-1]),
      .parameter_read(parameter_read[0:COLS-1]), .parameter_index(parameter_index[0:COLS-1]),
      .parameter_data(parameter_data[0:COLS-1]), .block_write, .block_row,
      .block_in(block_before), .block_out(block_after), .fold_k, .pass, .bias, .product,
      .overflowed, .drain_active, .drain_step, .landing, .bottom_overflowed);

  // ---- post unit
  logic post_block_read;
  logic [15:0] post_block_row;
  logic [7:0] post_block_column [LANES];
  logic signed [ACC_BITS-1:0] post_block_data [LANES];
  lane_event_t lane_event [LANES];
  post #(.LANES(LANES), .OPERAND_BITS(OPERAND_BITS), .ACC_BITS(ACC_BITS)) u_post (
      .clk, .reset, .cfg, .top, .head(head[POST]), .start(start[POST]), .ready(ready[POST]),
      .finish(finish[POST]), .setup_finished(setup_finished[POST]),
      .block_read(post_block_read), .block_row(post_block_row),
      .block_column(post_block_column), .block_data(post_block_data),
      .parameter_read(parameter_read[COLS:COLS+LANES-1]),
      .parameter_index(parameter_index[COLS:COLS+LANES-1]),
      .parameter_data(parameter_data[COLS:COLS+LANES-1]),
      .weight_read(weight_read[EDGE:EDGE+LANES-1]),
      .weight_address(weight_address[EDGE:EDGE+LANES-1]),
      .weight_data(weight_data[EDGE:EDGE+LANES-1]),
      .read_enable(activation_read[EDGE:EDGE+2*LANES-1]),
      .read_address(activation_address[EDGE:EDGE+2*LANES-1]),
      .read_data(activation_data[EDGE:EDGE+2*LANES-1]), .write_enable, .write_address,
      .write_data, .seen(lane_event));
  accumulators #(.COLS(COLS), .N_ROWS(N_BLOCK_ROWS), .LANES(LANES), .ACC_BITS(ACC_BITS))
      u_accumulators (
      .clk, .write(block_write), .row(block_row), .old(block_before), .data(block_after),
      .read(post_block_read), .read_row(post_block_row), .read_column(post_block_column),
      .read_data(post_block_data));

  overflow_counters #(.ROWS(ROWS), .COLS(COLS), .LANES(LANES), .N_BLOCK_ROWS(N_BLOCK_ROWS),
      .N_CHANNELS(N_CHANNELS), .PRODUCT_BITS(2 * OPERAND_BITS + 2), .ACC_BITS(ACC_BITS))
      u_overflow_counters (
      .clk, .reset, .cfg, .fold_k, .pass, .bias, .product, .overflowed, .drain_active,
      .drain_step, .landing, .write(block_write), .block_row, .bottom_overflowed,
      .lane(lane_event), .host_channel, .host_overflowed, .host_touched, .host_first_k,
      .host_min, .host_max);
endmodule
