// One column's bank of overflow counters. Folds of different channels can drain in different
// columns at once, so every column counts for itself; the host adds the banks up.
module overflow_counters
  import systole_pkg::*;
#(
    parameter int N_CHANNELS = 4096
) (
    input  logic clk,
    input  logic write,
    input  logic [20:0] channel,
    input  result_t result,
    input  logic [20:0] host_channel,
    output logic [63:0] host_overflowed,
    output logic [63:0] host_touched,
    output logic [31:0] host_first_k,
    output logic signed [63:0] host_min,
    output logic signed [63:0] host_max
);
  localparam int A = $clog2(N_CHANNELS);
  logic [63:0] n_overflowed [N_CHANNELS], n_touched [N_CHANNELS];
  logic [31:0] first_k [N_CHANNELS];
  logic signed [63:0] min_sum [N_CHANNELS], max_sum [N_CHANNELS];
  initial
    for (int i = 0; i < N_CHANNELS; i++) begin
      n_overflowed[i] = 0;
      n_touched[i] = 0;
      first_k[i] = '1;
      min_sum[i] = 64'sh7fffffffffffffff;
      max_sum[i] = 64'sh8000000000000000;
    end

  wire [A-1:0] at = channel[A-1:0];
  wire [A-1:0] host_at = host_channel[A-1:0];
  assign host_overflowed = n_overflowed[host_at];
  assign host_touched = n_touched[host_at];
  assign host_first_k = first_k[host_at];
  assign host_min = min_sum[host_at];
  assign host_max = max_sum[host_at];

  always_ff @(posedge clk)
    if (write) begin
      n_overflowed[at] <= n_overflowed[at] + 64'(result.n_overflowed);
      if (result.n_overflowed != 0) begin
        n_touched[at] <= n_touched[at] + 1;
        if (result.first_k < first_k[at]) first_k[at] <= result.first_k;
      end
      if (result.min_sum < min_sum[at]) min_sum[at] <= result.min_sum;
      if (result.max_sum > max_sum[at]) max_sum[at] <= result.max_sum;
    end
endmodule
