"""What a chunk is: its space, chain hash, layout, safetensors header and object key. No I/O."""
