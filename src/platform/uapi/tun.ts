/** Network interfaces whose other end is a program: include/uapi/linux/if_tun.h, if.h, sockios.h and virtio_net.h. */

/** Makes the descriptor an end of an interface; reads and writes a `struct ifreq`. */
export const TUNSETIFF = 0x400454ca;

/** Flags of an interface: it carries Ethernet frames; nothing is in front of them; a {@link VNET_HDR} is; it has several queues. */
export const IFF_TAP = 0x0002;
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;
export const IFF_MULTI_QUEUE = 0x0100;

/** Reads and sets the greatest length of a packet, without its Ethernet header. On any socket. */
export const SIOCGIFMTU = 0x8921;
export const SIOCSIFMTU = 0x8922;
/** Reads the flags of an interface. On any socket. */
export const SIOCGIFFLAGS = 0x8913;
/** It is switched on. */
export const IFF_UP = 1;

/** `struct ifreq`: a name that ends with NUL, and a union, of which flags are 16 bits and the MTU is 32 bits. */
export const IFREQ = { sizeof: 40, ifr_name: 0, names: 16, ifr_flags: 16, ifr_mtu: 16 } as const;

/** `struct virtio_net_hdr`, little-endian here: flags and gso_type are 8 bits, all else 16 bits. */
export const VNET_HDR = {
  sizeof: 10,
  flags: 0,
  gso_type: 1,
  hdr_len: 2,
  gso_size: 4,
  csum_start: 6,
  csum_offset: 8,
} as const;
/** In `flags`: the check sum has to be computed from `csum_start` on, and put `csum_offset` behind it. */
export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
