// An on-chip memory: a wide port for DMA, single-byte read ports, and nibble-wise write ports.
// Nibbles are kept apart so that two lanes can write the halves of a byte in one cycle.
module scratchpad #(
    parameter int N_BYTES = 1 << 17,
    parameter int BUS_BYTES = 64,
    parameter int N_READS = 16,
    parameter int N_WRITES = 1
) (
    input  logic clk,
    input  logic dma_write,
    input  logic [BUS_BYTES-1:0] dma_enable,
    input  logic [24:0] dma_address,
    input  logic [7:0] dma_in [BUS_BYTES],
    input  logic dma_read,
    output logic [7:0] dma_out [BUS_BYTES],
    input  logic read_enable [N_READS],
    input  logic [31:0] read_address [N_READS],
    output logic [7:0] read_data [N_READS],
    input  logic [1:0] write_enable [N_WRITES],   // low, high nibble
    input  logic [31:0] write_address [N_WRITES],
    input  logic [7:0] write_data [N_WRITES]
);
  localparam int A = $clog2(N_BYTES);
  logic [3:0] low [N_BYTES];
  logic [3:0] high [N_BYTES];

  always_comb begin
    for (int i = 0; i < BUS_BYTES; i++) dma_out[i] = 0;
    if (dma_read)
      for (int i = 0; i < BUS_BYTES; i++)
        dma_out[i] = {high[A'(dma_address + 25'(i))], low[A'(dma_address + 25'(i))]};
    for (int i = 0; i < N_READS; i++)
      read_data[i] = read_enable[i] ? {high[read_address[i][A-1:0]], low[read_address[i][A-1:0]]} : 0;
  end

  always_ff @(posedge clk) begin
    if (dma_write) begin
      for (int i = 0; i < BUS_BYTES; i++)
        if (dma_enable[i]) begin
          low[A'(dma_address + 25'(i))] <= dma_in[i][3:0];
          high[A'(dma_address + 25'(i))] <= dma_in[i][7:4];
        end
    end
    for (int i = 0; i < N_WRITES; i++) begin
      if (write_enable[i][0]) low[write_address[i][A-1:0]] <= write_data[i][3:0];
      if (write_enable[i][1]) high[write_address[i][A-1:0]] <= write_data[i][7:4];
    end
  end
endmodule
