// The overflow counters: what they hear of every add, and what they hold for each channel.
//
// Simulation only. Smallest and largest partial sums are those of exact sums, which no register of
// the machine holds; so this module shadows every accumulator with a record, and nothing of the
// machine depends on it. One clocked block with blocking assignments visits everything from the end
// of its way to the beginning, so that each record is read before it changes.
module overflow_counters
  import systole_pkg::*;
#(
    parameter int ROWS = 16,
    parameter int COLS = 16,
    parameter int LANES = 16,
    parameter int N_BLOCK_ROWS = 4096,
    parameter int N_CHANNELS = 4096,
    parameter int PRODUCT_BITS = 18,
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  logic reset,
    input  config_t cfg,
    // the grid
    input  logic [31:0] fold_k,                    // first step of what streams (stationary)
    input  pass_t pass [ROWS*COLS],
    input  logic signed [ACC_BITS-1:0] bias [ROWS*COLS],
    input  logic signed [PRODUCT_BITS-1:0] product [ROWS*COLS],
    input  logic overflowed [ROWS*COLS],
    // below the grid
    input  logic drain_active [COLS],
    input  logic [8:0] drain_step [COLS],
    input  landing_t landing [COLS],
    input  logic write [COLS],
    input  logic [15:0] block_row [COLS],
    input  logic bottom_overflowed [COLS],
    // the post unit's lanes
    input  lane_event_t lane [LANES],
    // what the host reads
    input  logic [20:0] host_channel,
    output logic [63:0] host_overflowed,
    output logic [63:0] host_touched,
    output logic [31:0] host_first_k,              // all ones: none
    output logic signed [63:0] host_min,
    output logic signed [63:0] host_max
);
  localparam int A = $clog2(N_CHANNELS);
  localparam int B = $clog2(N_BLOCK_ROWS * COLS);
  localparam int N = ROWS * COLS;
  localparam logic [31:0] NONE = '1;
  localparam logic signed [63:0] LARGEST = 64'sh7fffffffffffffff, SMALLEST = 64'sh8000000000000000;

  // Records: of the sums in the grid, of those that drain, of the blocks' entries, of the lanes.
  logic signed [63:0] exact [N], low [N], high [N], drain_low [N], drain_high [N];
  logic signed [63:0] entry_exact [1<<B], entry_low [1<<B], entry_high [1<<B];
  logic signed [63:0] lane_exact [LANES], lane_low [LANES], lane_high [LANES];
  logic [31:0] n [N], drain_n [N], entry_n [1<<B], lane_n [LANES];
  logic [31:0] first_k [N], drain_first_k [N], entry_first_k [1<<B], lane_first_k [LANES];
  logic [31:0] k [N];
  // The counters.
  logic [63:0] n_overflowed [N_CHANNELS], n_touched [N_CHANNELS];
  logic [31:0] first [N_CHANNELS];
  logic signed [63:0] min_sum [N_CHANNELS], max_sum [N_CHANNELS];
  initial begin
    for (int i = 0; i < N_CHANNELS; i++) begin
      n_overflowed[i] = 0;
      n_touched[i] = 0;
      first[i] = NONE;
      min_sum[i] = LARGEST;
      max_sum[i] = SMALLEST;
    end
    for (int i = 0; i < 1 << B; i++) begin
      entry_exact[i] = 0;
      entry_low[i] = LARGEST;
      entry_high[i] = SMALLEST;
      entry_n[i] = 0;
      entry_first_k[i] = NONE;
    end
  end
  wire [A-1:0] host = host_channel[A-1:0];
  assign host_overflowed = n_overflowed[host];
  assign host_touched = n_touched[host];
  assign host_first_k = first[host];
  assign host_min = min_sum[host];
  assign host_max = max_sum[host];

  // Steps of the fold that a pass belongs to, as far from the corner as the pass.
  logic [31:0] corner_k [ROWS+COLS];
  always_ff @(posedge clk) begin
    corner_k[0] <= fold_k;
    for (int i = 1; i < ROWS + COLS; i++) corner_k[i] <= corner_k[i-1];
  end

  task automatic count(input logic [A-1:0] channel, input logic [31:0] overflows,
                       input logic [31:0] at, input logic signed [63:0] smallest,
                       input logic signed [63:0] largest);
    n_overflowed[channel] = n_overflowed[channel] + 64'(overflows);
    if (overflows != 0) n_touched[channel] = n_touched[channel] + 1;
    if (overflows != 0 && at < first[channel]) first[channel] = at;
    if (smallest < min_sum[channel]) min_sum[channel] = smallest;
    if (largest > max_sum[channel]) max_sum[channel] = largest;
  endtask

  wire stationary = cfg.dataflow != OUTPUT_STATIONARY;
  int last, from;
  logic [B-1:0] e;
  always_ff @(posedge clk) if (!reset) begin
    // ---- below the grid: drained sums count; partial sums join the entry's record
    for (int c = 0; c < 32'(cfg.cols); c++) if (write[c]) begin
      last = (32'(cfg.rows) - 1) * COLS + c;
      if (!stationary)
        count(landing[c].channel[A-1:0] + A'(c), drain_n[last], drain_first_k[last],
              drain_low[last], drain_high[last]);
      else begin
        e = B'(32'(block_row[c]) * COLS + c);
        if (!landing[c].accumulate) begin
          entry_exact[e] = exact[last];
          entry_low[e] = low[last];
          entry_high[e] = high[last];
          entry_n[e] = n[last];
          entry_first_k[e] = first_k[last];
        end else begin
          entry_exact[e] = entry_exact[e] + exact[last];
          if (low[last] < entry_low[e]) entry_low[e] = low[last];
          if (high[last] > entry_high[e]) entry_high[e] = high[last];
          if (entry_exact[e] < entry_low[e]) entry_low[e] = entry_exact[e];
          if (entry_exact[e] > entry_high[e]) entry_high[e] = entry_exact[e];
          if (first_k[last] < entry_first_k[e]) entry_first_k[e] = first_k[last];
          entry_n[e] = entry_n[e] + n[last];
          if (bottom_overflowed[c]) begin
            entry_n[e] = entry_n[e] + 1;
            if (landing[c].last_k < entry_first_k[e]) entry_first_k[e] = landing[c].last_k;
          end
        end
        if (landing[c].counts)
          count(landing[c].channel[A-1:0]
                + (cfg.dataflow == INPUT_STATIONARY ? A'(0) : A'(c)),
                entry_n[e], entry_first_k[e], entry_low[e], entry_high[e]);
      end
    end

    // ---- the grid, last row first
    for (int r = 32'(cfg.rows) - 1; r >= 0; r--)
      for (int c = 0; c < 32'(cfg.cols); c++) begin
        int i;
        i = r * COLS + c;
        if (r > 0 && drain_active[c] && 32'(drain_step[c]) < r) begin
          drain_n[i] = drain_n[i-COLS];
          drain_first_k[i] = drain_first_k[i-COLS];
          drain_low[i] = drain_low[i-COLS];
          drain_high[i] = drain_high[i-COLS];
        end
        if (pass[i].valid && pass[i].last) begin
          if (stationary ? r == 0 : pass[i].init) begin
            exact[i] = 64'(bias[i]);
            low[i] = 64'(bias[i]);
            high[i] = 64'(bias[i]);
            n[i] = 0;
            first_k[i] = NONE;
            k[i] = 0;
          end else if (stationary) begin
            from = i - COLS;
            exact[i] = exact[from];
            low[i] = low[from];
            high[i] = high[from];
            n[i] = n[from];
            first_k[i] = first_k[from];
          end
          if (stationary) k[i] = corner_k[r+c] + r;
          exact[i] = exact[i] + 64'(product[i]);
          if (exact[i] < low[i]) low[i] = exact[i];
          if (exact[i] > high[i]) high[i] = exact[i];
          if (overflowed[i]) begin
            if (n[i] == 0) first_k[i] = k[i];
            n[i] = n[i] + 1;
          end
          k[i] = k[i] + 1;
          if (pass[i].fold_last) begin
            drain_n[i] = n[i];
            drain_first_k[i] = first_k[i];
            drain_low[i] = low[i];
            drain_high[i] = high[i];
          end
        end
      end

    // ---- lanes
    for (int l = 0; l < LANES; l++) if (lane[l].adds) begin
      if (lane[l].starts) begin
        lane_exact[l] = 64'(lane[l].start_value);
        lane_low[l] = 64'(lane[l].start_value);
        lane_high[l] = 64'(lane[l].start_value);
        lane_n[l] = 0;
        lane_first_k[l] = NONE;
      end
      lane_exact[l] = lane_exact[l] + 64'(lane[l].product);
      if (lane_exact[l] < lane_low[l]) lane_low[l] = lane_exact[l];
      if (lane_exact[l] > lane_high[l]) lane_high[l] = lane_exact[l];
      if (lane[l].overflowed) begin
        if (lane_n[l] == 0) lane_first_k[l] = 32'(lane[l].k);
        lane_n[l] = lane_n[l] + 1;
      end
      if (lane[l].ends)
        count(lane[l].channel[A-1:0], lane_n[l], lane_first_k[l], lane_low[l], lane_high[l]);
    end
  end
endmodule
