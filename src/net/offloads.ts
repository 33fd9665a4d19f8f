/** The flags of packets: what hardware found out about a received one, and what it shall do with one that is sent. */

/** Bits of `Packets.flags`. A device says in its limits which of them it can do. */
export const OFFLOAD = {
  /** Received: the VLAN tag was stripped, it is in `vlan`. */
  RX_VLAN_STRIPPED: 1 << 0,
  /** Received: the check sum of the IPv4 header was checked, and is right. */
  RX_IP_GOOD: 1 << 1,
  /** Received: it was checked, and is wrong. */
  RX_IP_BAD: 1 << 2,
  /** Received: the check sum of TCP or UDP was checked, and is right. */
  RX_L4_GOOD: 1 << 3,
  /** Received: it was checked, and is wrong. */
  RX_L4_BAD: 1 << 4,
  /** Received: `hash` was computed by hardware. */
  RX_HASH: 1 << 5,
  /** Received: `seconds` and `nanos` tell when. */
  RX_TIMESTAMP: 1 << 6,
  /** Received: only its beginning; `wire` tells how long it was. */
  RX_CUT: 1 << 7,
  /** To be sent: insert the tag `vlan`. */
  TX_VLAN: 1 << 8,
  /** To be sent: compute the check sum of the IPv4 header; `l2` and `l3` are set, and its field has 0. */
  TX_IP: 1 << 9,
  /** To be sent: compute the check sum of TCP; `l2` and `l3` are set, and its field has the sum of the pseudo header. */
  TX_TCP: 1 << 10,
  /** To be sent: the same for UDP. */
  TX_UDP: 1 << 11,
  /** To be sent: cut it into packets of `segmentSize` bytes of data; `l2`, `l3` and `l4` are set. */
  TX_TSO: 1 << 12,
  /** To be sent: it is IPv6, not IPv4. */
  TX_IPV6: 1 << 13,
} as const;
