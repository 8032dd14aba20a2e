// A read port for activations: from output pixel and tap to a byte's address, from the byte to the
// nibble as the multiplier takes it. Taps outside the tile are 0.
module activation_port
  import systole_pkg::*;
(
    input  activation_read_t request,
    output logic enable,
    output logic [31:0] address,
    input  logic [7:0] data,
    output logic signed [4:0] value
);
  logic signed [23:0] y, x;
  logic [16:0] channel;
  logic take_high;
  logic [3:0] nibble;
  always_comb begin
    y = 24'(request.oy) * 24'(request.stride_y) + 24'(request.tap.y) * 24'(request.dilation_y)
        - 24'(request.pad_top);
    x = 24'(request.ox) * 24'(request.stride_x) + 24'(request.tap.x) * 24'(request.dilation_x)
        - 24'(request.pad_left);
    channel = 17'(request.channel) + 17'(request.tap.channel);
    enable = request.valid && y >= 0 && x >= 0 && y < 24'(request.height) && x < 24'(request.width);
    address = 32'(request.address)
        + (32'(y) * 32'(request.width) + 32'(x)) * 32'(request.pixel_bytes)
        + (request.wide ? 32'(channel) : 32'(channel[16:1]));
  end
  // (Processes of their own, address and value: else the address seems to depend on the data.)
  always_comb begin
    take_high = request.wide ? request.high : channel[0];
    nibble = take_high ? data[7:4] : data[3:0];
    value = {request.is_signed && (!request.wide || request.high) && nibble[3], nibble};
  end
endmodule
