// A processing element: one product of nibbles a cycle, one add a step.
//
// Output-stationary: both operands pass through, the sum stays and drains down the column.
// Weight- and input-stationary: the upper operand stays, loaded through a chain that moves up; the
// sum comes from above and goes on down.
module pe
  import systole_pkg::*;
#(
    parameter int OPERAND_BITS = 8,   // widest operand: 4, or 8 in passes
    parameter int ACC_BITS = 32
) (
    input  logic clk,
    input  logic reset,
    input  logic stationary,
    input  logic shadow,
    input  logic saturate,
    input  logic signed [ACC_BITS-1:0] top,      // largest accumulator value
    // what passes through: from the left, and from above
    input  nibble_t left_in,
    output nibble_t left,
    input  nibble_t upper_in,
    output nibble_t upper,
    input  pass_t pass_in,
    output pass_t pass,
    input  logic signed [ACC_BITS-1:0] bias_in,
    output logic signed [ACC_BITS-1:0] bias,
    // sums: of the PE above, or the bias in row 0
    input  logic signed [ACC_BITS-1:0] acc_in,
    output logic signed [ACC_BITS-1:0] acc,
    // drain: what the PE above holds comes down
    input  logic drain,
    input  logic signed [ACC_BITS-1:0] result_in,
    output logic signed [ACC_BITS-1:0] result,
    // shift chain of stationary operands: from the PE below, or the memory in the last row
    input  logic chain_shift,
    input  logic chain_high,                      // the high nibble of what was just shifted in
    input  logic [9:0] chain_in,                  // high, low
    output logic [9:0] chain,
    // for the overflow counters
    output logic signed [2*OPERAND_BITS+1:0] product,
    output logic overflowed
);
  localparam int PRODUCT_BITS = 2 * OPERAND_BITS + 2;

  logic [9:0] operand_q, operand, chain_next;
  logic signed [4:0] multiplicand;
  logic signed [9:0] partial;
  logic signed [PRODUCT_BITS-1:0] product_q, shifted;
  logic signed [ACC_BITS-1:0] addend, sum, shadow_acc, acc_next, shadow_next;
  logic adds;

  // ---- product
  always_comb begin
    operand = shadow && !pass.take ? operand_q : chain;
    multiplicand = upper.value;
    if (stationary) multiplicand = upper.high && OPERAND_BITS > 4 ? operand[9:5] : operand[4:0];
    partial = left.value * multiplicand;
    shifted = PRODUCT_BITS'(partial);
    if (OPERAND_BITS > 4 && left.high) shifted = shifted <<< 4;
    if (OPERAND_BITS > 4 && upper.high) shifted = shifted <<< 4;
    product = pass.first ? shifted : product_q + shifted;
  end

  // ---- sum
  always_comb begin
    adds = pass.valid && pass.last;
    addend = stationary ? acc_in : pass.init ? bias : acc;
  end
  overflow_add #(.ACC_BITS(ACC_BITS), .IN_BITS(PRODUCT_BITS)) u_add (
      .top, .saturate, .acc(addend), .in(product), .sum, .overflowed);

  // ---- next state
  always_comb begin
    acc_next = acc;
    shadow_next = shadow_acc;
    chain_next = chain;
    if (drain) begin
      if (shadow) shadow_next = result_in;
      else acc_next = result_in;
    end
    if (adds) begin
      acc_next = sum;
      if (pass.fold_last && shadow) shadow_next = sum;
    end
    if (chain_shift) chain_next = chain_in;
    if (chain_high) chain_next[9:5] = chain_in[9:5];
    result = shadow && !stationary ? shadow_acc : acc;
  end

  always_ff @(posedge clk) begin
    left <= left_in;
    upper <= upper_in;
    pass <= pass_in;
    if (reset) pass.valid <= 0;
    bias <= bias_in;
    if (pass.valid) product_q <= product;
    acc <= acc_next;
    shadow_acc <= shadow_next;
    chain <= chain_next;
    if (pass.valid && pass.take) operand_q <= chain;
  end
endmodule
