// Dependency tokens: one counter for each ordered pair of units, and who may start.
module tokens
  import systole_pkg::*;
(
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  entry_t head [4],
    input  logic [3:0] take,
    input  finish_t finish [4],
    output logic [3:0] granted,   // every token that the head waits for is there
    output logic overflow,
    output logic [31:0] overflow_index   // the first instruction whose token finds its counter full
);
  logic [16:0] count [16];  // 4 * from + to
  logic [16:0] count_next [16];

  always_comb
    for (int to = 0; to < 4; to++) begin
      granted[to] = 1;
      for (int from = 0; from < 4; from++)
        if (head[to].bits[6 + from] && count[4 * from + to] == 0) granted[to] = 0;
    end

  always_comb begin
    overflow = 0;
    overflow_index = '1;
    for (int to = 0; to < 4; to++) begin
      for (int from = 0; from < 4; from++) begin
        count_next[4 * from + to] = count[4 * from + to];
        if (head[to].bits[6 + from] && take[to]) count_next[4 * from + to] -= 1;
        if (finish[from].valid && finish[from].signal_mask[to]) count_next[4 * from + to] += 1;
        if (count_next[4 * from + to] > 17'(cfg.max_tokens)) begin
          overflow = 1;
          if (finish[from].index < overflow_index) overflow_index = finish[from].index;
        end
      end
    end
  end

  always_ff @(posedge clk) begin
    for (int i = 0; i < 16; i++) count[i] <= reset ? 0 : count_next[i];
  end
endmodule
