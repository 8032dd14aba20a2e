// The grid of processing elements. A PE multiplies one pair of nibbles a cycle, adds the step's
// product in its last pass, and keeps a finished result in a shadow register that drains down its
// column.
//
// One clocked block walks from the last PE to the first with blocking assignments: each PE reads its
// left and upper neighbours' registers before these change. (One instance for each PE takes the
// simulator a quarter of an hour to compile.)
module grid
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    input  logic signed [4:0] a_edge [ROWS],     // activation nibbles from the left
    input  logic a_high_edge [ROWS],
    input  logic signed [4:0] w_edge [COLS],     // weight nibbles and control from above
    input  logic w_high_edge [COLS],
    input  logic valid_edge [COLS],
    input  logic first_edge [COLS],              // first pass of its step
    input  logic last_edge [COLS],               // last pass of its step
    input  logic init_edge [COLS],               // first step of the fold: start from the bias
    input  logic fold_last_edge [COLS],          // last pass of the fold
    input  logic signed [31:0] bias_edge [COLS],
    input  logic drain_active [COLS],
    input  logic [8:0] drain_step [COLS],
    output result_t bottom [COLS]                // what the bottom row's shadow registers hold
);
  logic signed [4:0] a [ROWS][COLS], w [ROWS][COLS];
  logic a_high [ROWS][COLS], w_high [ROWS][COLS];
  logic valid [ROWS][COLS], first [ROWS][COLS], last [ROWS][COLS], init [ROWS][COLS];
  logic fold_last [ROWS][COLS];
  logic signed [31:0] bias [ROWS][COLS];
  logic signed [17:0] product [ROWS][COLS];
  logic signed [31:0] acc [ROWS][COLS], shadow_acc [ROWS][COLS];
  logic signed [63:0] exact [ROWS][COLS];
  logic [31:0] k [ROWS][COLS];
  logic [31:0] n_overflowed [ROWS][COLS], shadow_n_overflowed [ROWS][COLS];
  logic [31:0] first_k [ROWS][COLS], shadow_first_k [ROWS][COLS];
  logic signed [63:0] min_sum [ROWS][COLS], shadow_min_sum [ROWS][COLS];
  logic signed [63:0] max_sum [ROWS][COLS], shadow_max_sum [ROWS][COLS];

  logic signed [17:0] partial;
  logic signed [33:0] sum, top, low;
  logic [5:0] unused_bits;
  always_ff @(posedge clk) begin
    top = (34'sd1 <<< (cfg.acc_bits - 1)) - 1;
    low = -top - 1;
    unused_bits = 6'd32 - cfg.acc_bits;
    for (int r = 32'(cfg.rows) - 1; r >= 0; r--) begin
      for (int c = 32'(cfg.cols) - 1; c >= 0; c--) begin
        // drain: what the row above holds comes down, as long as there is something above
        if (r > 0 && drain_active[c] && 32'(drain_step[c]) < r) begin
          shadow_acc[r][c] = shadow_acc[r-1][c];
          shadow_n_overflowed[r][c] = shadow_n_overflowed[r-1][c];
          shadow_first_k[r][c] = shadow_first_k[r-1][c];
          shadow_min_sum[r][c] = shadow_min_sum[r-1][c];
          shadow_max_sum[r][c] = shadow_max_sum[r-1][c];
        end
        // a pass with the operands that the registers hold
        if (valid[r][c]) begin
          partial = 18'(32'(a[r][c]) * 32'(w[r][c])) <<< (4 * (32'(a_high[r][c]) + 32'(w_high[r][c])));
          product[r][c] = first[r][c] ? partial : product[r][c] + partial;
          if (last[r][c]) begin
            if (init[r][c]) begin
              acc[r][c] = bias[r][c];
              exact[r][c] = 64'(bias[r][c]);
              k[r][c] = 0;
              n_overflowed[r][c] = 0;
              first_k[r][c] = 32'hffffffff;
              min_sum[r][c] = 64'(bias[r][c]);
              max_sum[r][c] = 64'(bias[r][c]);
            end
            sum = 34'(acc[r][c]) + 34'(product[r][c]);
            exact[r][c] = exact[r][c] + 64'(product[r][c]);
            acc[r][c] = sum[31:0];
            if (sum > top || sum < low) begin
              if (cfg.saturate) acc[r][c] = sum > top ? top[31:0] : low[31:0];
              else acc[r][c] = $signed(sum[31:0] << unused_bits) >>> unused_bits;
              if (n_overflowed[r][c] == 0) first_k[r][c] = k[r][c];
              n_overflowed[r][c] = n_overflowed[r][c] + 1;
            end
            if (exact[r][c] < min_sum[r][c]) min_sum[r][c] = exact[r][c];
            if (exact[r][c] > max_sum[r][c]) max_sum[r][c] = exact[r][c];
            k[r][c] = k[r][c] + 1;
            if (fold_last[r][c]) begin
              shadow_acc[r][c] = acc[r][c];
              shadow_n_overflowed[r][c] = n_overflowed[r][c];
              shadow_first_k[r][c] = first_k[r][c];
              shadow_min_sum[r][c] = min_sum[r][c];
              shadow_max_sum[r][c] = max_sum[r][c];
            end
          end
        end
        // operands move on
        if (c == 0) begin
          a[r][c] = a_edge[r];
          a_high[r][c] = a_high_edge[r];
        end else begin
          a[r][c] = a[r][c-1];
          a_high[r][c] = a_high[r][c-1];
        end
        if (r == 0) begin
          w[r][c] = w_edge[c];
          w_high[r][c] = w_high_edge[c];
          valid[r][c] = valid_edge[c] && !reset;
          first[r][c] = first_edge[c];
          last[r][c] = last_edge[c];
          init[r][c] = init_edge[c];
          fold_last[r][c] = fold_last_edge[c];
          bias[r][c] = bias_edge[c];
        end else begin
          w[r][c] = w[r-1][c];
          w_high[r][c] = w_high[r-1][c];
          valid[r][c] = valid[r-1][c] && !reset;
          first[r][c] = first[r-1][c];
          last[r][c] = last[r-1][c];
          init[r][c] = init[r-1][c];
          fold_last[r][c] = fold_last[r-1][c];
          bias[r][c] = bias[r-1][c];
        end
      end
    end
    // A copy of the bottom row's registers as they are after this edge.
    for (int c = 0; c < COLS; c++)
      bottom[c] <= {shadow_acc[4'(cfg.rows - 1)][c], shadow_n_overflowed[4'(cfg.rows - 1)][c],
          shadow_first_k[4'(cfg.rows - 1)][c], shadow_min_sum[4'(cfg.rows - 1)][c],
          shadow_max_sum[4'(cfg.rows - 1)][c]};
  end
endmodule
