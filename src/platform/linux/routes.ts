/** All routes of a network namespace, by rtnetlink(7): /proc/net/route shows only the main table. */
import { DmaError } from '../../errors.js';
import { check, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { KernelRoute } from '../ports.js';
import * as nl from '../uapi/rtnetlink.js';
import { AF_INET, AF_INET6, SOCK_CLOEXEC } from '../uapi/socket.js';

/** Receive buffer size in bytes, longer than any message of a dump. */
const ROOM = 64 * 1024;
/** How often a table is read again if it changed meanwhile. */
const TRIES = 10;

/** One message from the kernel: its type, and the bytes after its header. */
interface Message {
  readonly type: number;
  readonly body: DataView;
}

/** See `KernelPort.routes`. */
export function readRoutes(libc: Libc): KernelRoute[] {
  const hops = new NextHops(libc);
  return [AF_INET, AF_INET6].flatMap((family) =>
    dump(libc, nl.RTM_GETROUTE, family, nl.RTMSG.sizeof)
      .filter(({ type }) => type === nl.RTM_NEWROUTE)
      .flatMap(({ body }) => routeOf(body, hops) ?? []),
  );
}

function routeOf(body: DataView, hops: NextHops): KernelRoute | undefined {
  const { RTMSG } = nl;
  const family = body.getUint8(RTMSG.rtm_family);
  if ((body.getUint32(RTMSG.rtm_flags, true) & nl.RTM_F_CLONED) !== 0) return undefined;
  const attributes = attributesOf(body, RTMSG.sizeof);
  const kind = body.getUint8(RTMSG.rtm_type);
  const address = bytesOf(attributes.get(nl.RTA_DST));
  const text = family === AF_INET ? ipv4(address) : ipv6(address);
  return {
    family: family === AF_INET ? 4 : 6,
    table: attributes.get(nl.RTA_TABLE)?.getUint32(0, true) ?? body.getUint8(RTMSG.rtm_table),
    type: kind === nl.RTN_UNICAST ? 'unicast' : kind === nl.RTN_LOCAL ? 'local' : 'other',
    destination: `${text}/${body.getUint8(RTMSG.rtm_dst_len)}`,
    interfaces: [...new Set(interfacesOf(attributes, hops))],
  };
}

function interfacesOf(attributes: ReadonlyMap<number, DataView>, hops: NextHops): number[] {
  const found: number[] = [];
  const direct = attributes.get(nl.RTA_OIF);
  if (direct !== undefined) found.push(direct.getUint32(0, true));
  const several = attributes.get(nl.RTA_MULTIPATH);
  if (several !== undefined)
    for (let at = 0; at + nl.RTNEXTHOP.sizeof <= several.byteLength;) {
      found.push(several.getInt32(at + nl.RTNEXTHOP.rtnh_ifindex, true));
      at += padded(Math.max(several.getUint16(at + nl.RTNEXTHOP.rtnh_len, true), nl.RTNEXTHOP.sizeof));
    }
  const named = attributes.get(nl.RTA_NH_ID);
  // Most kernels report the interfaces in the route itself.
  if (named !== undefined && found.length === 0) found.push(...hops.interfaces(named.getUint32(0, true)));
  return found;
}

/** Next hop objects (ip-nexthop(8)); read when the first route refers to one. */
class NextHops {
  readonly #libc: Libc;
  #known: Map<number, ReadonlyMap<number, DataView>> | undefined;

  constructor(libc: Libc) {
    this.#libc = libc;
  }

  interfaces(id: number): number[] {
    this.#known ??= this.#read();
    const attributes = this.#known.get(id);
    const direct = attributes?.get(nl.NHA_OIF);
    if (direct !== undefined) return [direct.getUint32(0, true)];
    const group = attributes?.get(nl.NHA_GROUP);
    if (group === undefined) return [];
    const { sizeof, id: member } = nl.NEXTHOP_GRP;
    // Groups are not nested.
    return Array.from({ length: Math.floor(group.byteLength / sizeof) }, (_, n) =>
      this.interfaces(group.getUint32(n * sizeof + member, true)),
    ).flat();
  }

  #read(): Map<number, ReadonlyMap<number, DataView>> {
    const known = new Map<number, ReadonlyMap<number, DataView>>();
    for (const { type, body } of dump(this.#libc, nl.RTM_GETNEXTHOP, 0, nl.NHMSG.sizeof)) {
      if (type !== nl.RTM_NEWNEXTHOP) continue;
      const attributes = attributesOf(body, nl.NHMSG.sizeof);
      const id = attributes.get(nl.NHA_ID)?.getUint32(0, true);
      if (id !== undefined) known.set(id, attributes);
    }
    return known;
  }
}

/**
 * All messages of one dump.
 *
 * @param family the first byte of the request's body
 * @param length bytes of that body
 */
function dump(libc: Libc, request: number, family: number, length: number): Message[] {
  for (let tries = 0; tries < TRIES; tries++) {
    const messages = dumpOnce(libc, request, family, length);
    if (messages !== undefined) return messages;
  }
  throw new DmaError({
    code: 'EAGAIN',
    operation: 'rtnetlink',
    reason: 'the routes kept changing while they were read',
  });
}

/** Returns `undefined` if the table changed meanwhile. */
function dumpOnce(libc: Libc, request: number, family: number, length: number): Message[] | undefined {
  const fd = check(libc, libc.socket(nl.AF_NETLINK, nl.SOCK_RAW | SOCK_CLOEXEC, nl.NETLINK_ROUTE), 'socket');
  try {
    const { NLMSGHDR } = nl;
    const asked = new DataView(new ArrayBuffer(NLMSGHDR.sizeof + length));
    asked.setUint32(NLMSGHDR.nlmsg_len, asked.byteLength, true);
    asked.setUint16(NLMSGHDR.nlmsg_type, request, true);
    asked.setUint16(NLMSGHDR.nlmsg_flags, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, true);
    asked.setUint8(NLMSGHDR.sizeof, family);
    check(libc, libc.send(fd, new Uint8Array(asked.buffer), asked.byteLength, 0), 'send', 'rtnetlink');
    const messages: Message[] = [];
    for (;;) {
      // A new buffer each time, because the messages refer to it. The kernel has the next part ready, so this does not
      // block.
      const part = new Uint8Array(new ArrayBuffer(ROOM));
      const got = check(libc, libc.read(fd, part, ROOM), 'read', 'rtnetlink');
      if (got === 0) throw new DmaError({ code: 'EIO', operation: 'rtnetlink', reason: 'the answer ended early' });
      for (let at = 0; at + NLMSGHDR.sizeof <= got;) {
        const view = new DataView(part.buffer, at, got - at);
        const size = Math.min(Math.max(view.getUint32(NLMSGHDR.nlmsg_len, true), NLMSGHDR.sizeof), got - at);
        const type = view.getUint16(NLMSGHDR.nlmsg_type, true);
        const body = new DataView(part.buffer, at + NLMSGHDR.sizeof, size - NLMSGHDR.sizeof);
        if ((view.getUint16(NLMSGHDR.nlmsg_flags, true) & nl.NLM_F_DUMP_INTR) !== 0) return undefined;
        if (type === nl.NLMSG_DONE) return messages;
        if (type === nl.NLMSG_ERROR) fail(-body.getInt32(0, true), 'rtnetlink');
        messages.push({ type, body });
        at += padded(size);
      }
    }
  } finally {
    libc.close(fd);
  }
}

function attributesOf(body: DataView, from: number): Map<number, DataView> {
  const found = new Map<number, DataView>();
  const { RTATTR } = nl;
  for (let at = from; at + RTATTR.sizeof <= body.byteLength;) {
    const size = Math.max(body.getUint16(at + RTATTR.rta_len, true), RTATTR.sizeof);
    if (at + size > body.byteLength) break;
    found.set(
      body.getUint16(at + RTATTR.rta_type, true),
      new DataView(body.buffer, body.byteOffset + at + RTATTR.sizeof, size - RTATTR.sizeof),
    );
    at += padded(size);
  }
  return found;
}

function padded(size: number): number {
  return (size + 3) & ~3;
}

function bytesOf(view: DataView | undefined): number[] {
  return view === undefined ? [] : [...new Uint8Array(view.buffer, view.byteOffset, view.byteLength)];
}

function ipv4(bytes: readonly number[]): string {
  return Array.from({ length: 4 }, (_, n) => bytes[n] ?? 0).join('.');
}

/** An IPv6 address; of runs of zero groups only the last one is not shortened. */
function ipv6(bytes: readonly number[]): string {
  const group = (n: number): string => ((bytes[2 * n] ?? 0) * 256 + (bytes[2 * n + 1] ?? 0)).toString(16);
  const text = Array.from({ length: 8 }, (_, n) => group(n)).join(':');
  return text === '0:0:0:0:0:0:0:0' ? '::' : text.replace(/(?::0)+$/, '::');
}
