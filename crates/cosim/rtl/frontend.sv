// Fetches one instruction a cycle and moves it into its unit's queue; a fence waits for silence.
module frontend
  import systole_pkg::*;
  import isa_pkg::*;
#(
    parameter int N_INSTRUCTIONS = 1 << 18,
    parameter int QUEUE_DEPTH = 64
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic [31:0] n_instructions,
    input  logic [3:0] take,              // the unit starts its queue's head
    input  logic [3:0][4:0] n_finished,   // instructions of the unit that finish in this cycle
    output entry_t head [4],
    output logic [3:0] has_head,
    output logic issue,
    output logic fence,
    output logic [31:0] issue_index,
    output logic done,
    output logic all_wait,                // whatever has issued and not ended waits in a queue
    output logic [31:0] oldest_index      // of the queues' heads, or else the next to issue
);
  logic [127:0] memory [N_INSTRUCTIONS] /* verilator public_flat_rw */;
  entry_t queue [4 * QUEUE_DEPTH];
  logic [31:0] pc;
  logic [15:0] read_at [4], write_at [4];
  logic [15:0] count [4];
  logic [31:0] n_running;  // issued and not ended

  logic [127:0] bits;
  logic [1:0] unit;
  logic is_fence;
  always_comb begin
    bits = memory[pc[$clog2(N_INSTRUCTIONS)-1:0]];
    is_fence = bits[5:0] == OP_FENCE;
    unit = unit_of(bits[5:0]);
    fence = !reset && pc < n_instructions && is_fence && n_running == 0;
    issue = fence || (!reset && pc < n_instructions && !is_fence
        && count[unit] < 16'(cfg.queue_depth));
    issue_index = pc;
    done = pc == n_instructions && n_running == 0;
    all_wait = n_running == 32'(count[0]) + 32'(count[1]) + 32'(count[2]) + 32'(count[3]);
    oldest_index = pc;
    for (int u = 0; u < 4; u++) begin
      has_head[u] = count[u] != 0;
      head[u] = queue[u * QUEUE_DEPTH + 32'(read_at[u])];
      if (has_head[u] && head[u].index < oldest_index) oldest_index = head[u].index;
    end
  end

  always_ff @(posedge clk) begin
    if (reset) begin
      pc <= 0;
      n_running <= 0;
      for (int u = 0; u < 4; u++) begin
        read_at[u] <= 0;
        write_at[u] <= 0;
        count[u] <= 0;
      end
    end else begin
      if (issue) pc <= pc + 1;
      if (issue && !fence) queue[32'(unit) * QUEUE_DEPTH + 32'(write_at[unit])] <= {pc, bits};
      n_running <= n_running + 32'(issue && !fence) - 32'(n_finished[0]) - 32'(n_finished[1])
          - 32'(n_finished[2]) - 32'(n_finished[3]);
      for (int u = 0; u < 4; u++) begin
        if (take[u]) read_at[u] <= read_at[u] == 16'(QUEUE_DEPTH - 1) ? 0 : read_at[u] + 1;
        if (issue && !fence && unit == 2'(u))
          write_at[u] <= write_at[u] == 16'(QUEUE_DEPTH - 1) ? 0 : write_at[u] + 1;
        count[u] <= count[u] + 16'(issue && !fence && unit == 2'(u)) - 16'(take[u]);
      end
    end
  end
endmodule
