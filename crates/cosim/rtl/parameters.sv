// The parameter table: 8-byte entries, written bytewise by DMA, read whole.
module parameters
  import systole_pkg::*;
#(
    parameter int N_ENTRIES = 1024,
    parameter int BUS_BYTES = 64,
    parameter int N_READS = 32
) (
    input  logic clk,
    input  logic dma_write,
    input  logic [BUS_BYTES-1:0] dma_enable,
    input  logic [24:0] dma_address,
    input  logic [7:0] dma_in [BUS_BYTES],
    input  logic read_enable [N_READS],
    input  logic [11:0] read_index [N_READS],
    output parameter_t read_data [N_READS]
);
  localparam int A = $clog2(N_ENTRIES * 8);
  logic [7:0] bytes [N_ENTRIES * 8];
  logic [A-1:0] at;

  always_comb begin
    at = 0;
    for (int i = 0; i < N_READS; i++) begin
      read_data[i] = '0;
      if (read_enable[i]) begin
        at = A'({read_index[i], 3'b0});
        read_data[i] = {bytes[at+4], bytes[at+3], bytes[at+2], bytes[at+1], bytes[at]};
      end
    end
  end

  always_ff @(posedge clk)
    if (dma_write)
      for (int i = 0; i < BUS_BYTES; i++)
        if (dma_enable[i]) bytes[A'(dma_address + 25'(i))] <= dma_in[i];
endmodule
