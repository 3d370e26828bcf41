"""The datapath as hardware: RTL of array, encoder and decoder, co-simulation, synthesis."""
