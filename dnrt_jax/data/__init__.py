"""Bytes -> arrays -> batches: `datasets` reads, `augment` transforms on the device."""
