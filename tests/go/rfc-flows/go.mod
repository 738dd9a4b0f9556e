module ioasid.test/rfc-flows

go 1.19
