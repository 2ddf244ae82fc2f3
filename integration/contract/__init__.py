"""The contract of `xfrmpy.datapath.interface`, as tests that every datapath is put through.

A test module makes classes of its own from these and gives the fixtures that they name:

- `open_datapath`: a function of no arguments that opens a datapath of the kind under test, of the
  network namespace of the calling thread. It may be called again, as a daemon does that starts
  anew; who opens one also closes it.
- `spi_bits`: what is set in the SPI of every inbound SA of this kind (`USERSPACE_SPI_BIT` or 0).
  Where a test has no reason for the one or the other, ESP goes in UDP if there is such a bit.
- for `DatapathContract`, `gateway`: the test runs in a namespace made by `gateway_namespace`.
- for `TrafficContract`, `sites`: two `Site`s, made by `two_sites`.

All of them may last for a module: in an emulated machine a namespace takes seconds to make.
"""
