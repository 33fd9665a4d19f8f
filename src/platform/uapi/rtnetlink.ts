/** Routes over netlink: include/linux/socket.h, include/uapi/linux/netlink.h, rtnetlink.h and nexthop.h. */

export const AF_NETLINK = 16;
export const SOCK_RAW = 3;
export const NETLINK_ROUTE = 0;

export const NLM_F_REQUEST = 0x1;
/** The table changed during the dump. */
export const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_DUMP = 0x300;

export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const RTM_NEWROUTE = 24;
export const RTM_GETROUTE = 26;
export const RTM_NEWNEXTHOP = 104;
export const RTM_GETNEXTHOP = 106;

export const RTN_UNICAST = 1;
export const RTN_LOCAL = 2;

/** A cache entry, not a route. */
export const RTM_F_CLONED = 0x200;

export const RTA_DST = 1;
export const RTA_OIF = 4;
export const RTA_MULTIPATH = 9;
export const RTA_TABLE = 15;
export const RTA_NH_ID = 30;

export const NHA_ID = 1;
export const NHA_GROUP = 2;
export const NHA_OIF = 5;

/** `struct nlmsghdr`: nlmsg_len u32 counts this header, nlmsg_type and nlmsg_flags u16. The next one is at a multiple of 4. */
export const NLMSGHDR = { sizeof: 16, nlmsg_len: 0, nlmsg_type: 4, nlmsg_flags: 6 } as const;

/** `struct rtmsg`: u8 but for rtm_flags, which is u32. */
export const RTMSG = {
  sizeof: 12,
  rtm_family: 0,
  rtm_dst_len: 1,
  rtm_table: 4,
  rtm_type: 7,
  rtm_flags: 8,
} as const;

/** `struct rtattr`: both u16; rta_len counts this header. The next one is at a multiple of 4. */
export const RTATTR = { sizeof: 4, rta_len: 0, rta_type: 2 } as const;

/** `struct rtnexthop`: rtnh_len u16, rtnh_ifindex int. */
export const RTNEXTHOP = { sizeof: 8, rtnh_len: 0, rtnh_ifindex: 4 } as const;

/** `struct nhmsg`, before the attributes of a next hop. */
export const NHMSG = { sizeof: 8 } as const;

/** `struct nexthop_grp`: id u32. */
export const NEXTHOP_GRP = { sizeof: 8, id: 0 } as const;
