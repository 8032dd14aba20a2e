// One add at the accumulator's width: what does not fit saturates or wraps.
module overflow_add #(
    parameter int ACC_BITS = 32,
    parameter int IN_BITS = 18
) (
    input  logic signed [ACC_BITS-1:0] top,   // largest value of the width in use: 2^(bits-1) - 1
    input  logic saturate,
    input  logic signed [ACC_BITS-1:0] acc,
    input  logic signed [IN_BITS-1:0] in,
    output logic signed [ACC_BITS-1:0] sum,
    output logic overflowed
);
  localparam int SUM_BITS = (ACC_BITS > IN_BITS ? ACC_BITS : IN_BITS) + 1;
  logic signed [SUM_BITS-1:0] exact;
  logic over, under, is_negative;
  always_comb begin
    exact = SUM_BITS'(acc) + SUM_BITS'(in);
    over = exact > SUM_BITS'(top);
    under = exact < ~SUM_BITS'(top);
    overflowed = over || under;
    // The bit above `top` is the sign of a value that wraps.
    is_negative = (exact[ACC_BITS-1:0] & ~top & {top[ACC_BITS-2:0], 1'b1}) != 0;
    if (saturate && over) sum = top;
    else if (saturate && under) sum = ~top;
    else if (is_negative) sum = exact[ACC_BITS-1:0] | ~top;
    else sum = exact[ACC_BITS-1:0] & top;
  end
endmodule
