// A read port for weights: nibble INDEX of a line. Weights are two's complement.
module weight_port
  import systole_pkg::*;
#(
    parameter int INDEX = 0
) (
    input  weight_read_t request,
    input  logic [7:0] line_bytes,
    output logic enable,
    output logic [31:0] address,
    input  logic [7:0] data,
    output logic signed [4:0] value
);
  logic [3:0] nibble;
  always_comb begin
    enable = request.valid;
    address = 32'(request.line) * 32'(line_bytes) + INDEX / 2;
  end
  always_comb begin
    nibble = INDEX % 2 == 1 ? data[7:4] : data[3:0];
    value = {(!request.wide || request.high) && nibble[3], nibble};
  end
endmodule
