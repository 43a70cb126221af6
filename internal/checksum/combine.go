package checksum

// IsCRC reports whether the checksum of an object can be computed from
// those of its parts.
func (a *Algorithm) IsCRC() bool { return a.polynomial != 0 }

// Append returns the CRC of a concatenation, from the CRCs of its two
// pieces and the length of the second piece in bytes.
func (a *Algorithm) Append(beginning, end []byte, length int64) []byte {
	sum := appendCRC(number(beginning), number(end), length, a.polynomial, 8*a.ID.Size())
	return appendUint(nil, sum, a.ID.Size())
}

func number(digest []byte) (n uint64) {
	for _, b := range digest {
		n = n<<8 | uint64(b)
	}
	return n
}

// appendUint appends the size low-order bytes of n in big-endian order.
func appendUint(b []byte, n uint64, size int) []byte {
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(n>>(8*i))) //nolint:gosec // the low byte
	}
	return b
}

// appendCRC returns the CRC of A followed by B, from their CRCs and the
// length of B in bytes. Appending a zero bit multiplies a CRC by x modulo
// the polynomial, so appending n bytes multiplies it by x^(8n), which is
// computed by squaring. CRCs and polynomial are reflected: the highest
// power is the lowest bit.
func appendCRC(a, b uint64, length int64, polynomial uint64, width int) uint64 {
	square := uint64(1) << (width - 2) // x
	for range 3 {
		square = multiplyCRC(square, square, polynomial, width) // x^8
	}

	for ; length > 0; length >>= 1 {
		if length&1 != 0 {
			a = multiplyCRC(a, square, polynomial, width)
		}
		square = multiplyCRC(square, square, polynomial, width)
	}

	return a ^ b
}

// multiplyCRC multiplies two polynomials modulo the CRC polynomial.
func multiplyCRC(a, b, polynomial uint64, width int) uint64 {
	var product uint64
	for bit := uint64(1) << (width - 1); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ polynomial
		} else {
			b >>= 1
		}
	}

	return product
}
