"""What a guest's disks can be made to do, whoever has them open: one contract, one module for each kind of guest."""
