"""What is measured, one file a kind of row. Each has `measure(bed, wanted)`; `wanted` says whether a row's name is."""
