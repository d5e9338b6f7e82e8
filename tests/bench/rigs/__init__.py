"""The reference rigs: their payloads, the third-party drivers that publish them, and what is measured of them."""
