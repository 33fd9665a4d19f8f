/** Network interfaces in use: with routes, with addresses, or used by other interfaces. */
import type { KernelPort, KernelRoute } from '../../platform/ports.js';
import type { Asking, Facts, Use } from './found.js';

const CLASS = '/sys/class/net';

/** Facts that are collected once for all interfaces. */
export interface NetworkFacts {
  readonly routes: readonly KernelRoute[];
  /** Indexes of the interfaces that programs receive raw packets from. */
  readonly listened: ReadonlySet<number>;
  /** Names of the interfaces that PPPoE runs over: they need neither addresses nor routes. */
  readonly dialled: ReadonlySet<string>;
}

/** See {@link NetworkFacts}. */
export function readNetwork(kernel: KernelPort, asking: Asking): NetworkFacts {
  const rowsOf = (path: string): string[][] =>
    asking
      .ask(() => kernel.readText(path) ?? '', '')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/));
  // Columns: pointer, references, type, protocol, interface.
  const listened = rowsOf('/proc/net/packet').map(([, , , , index]) => Number(index));
  return {
    routes: asking.ask(() => kernel.routes(), []),
    listened: new Set(listened.filter((index) => index > 0)),
    // Columns: session, address, interface.
    dialled: new Set(rowsOf('/proc/net/pppoe').flatMap(([, , name]) => name ?? [])),
  };
}

/** Names of the interfaces whose path in /sys/devices contains this part. */
export function interfacesBelow(kernel: KernelPort, part: string): string[] {
  return kernel.list(CLASS).filter((name) => kernel.readLink(`${CLASS}/${name}`)?.includes(part) === true);
}

/** The uses of the interface `name`. */
export function interfaceUses(
  kernel: KernelPort,
  asking: Asking,
  { value: { routes, listened, dialled } }: Facts<NetworkFacts>,
  name: string,
): Use[] {
  const uses: Use[] = [];
  for (const each of withUppers(kernel, asking, name)) {
    const by = each === name ? '' : ` by ${each}`;
    const index = Number(asking.ask(() => kernel.readText(`${CLASS}/${each}/ifindex`), undefined) ?? NaN);
    const best = mostTelling(routes.filter(({ interfaces }) => interfaces.includes(index)));
    if (best !== undefined)
      uses.push({
        text: `its interface ${name} ${best}${by}`,
        todo: `ip addr flush dev ${each}; ip link set ${each} down`,
      });
    const master = asking
      .ask(() => kernel.readLink(`${CLASS}/${each}/master`), undefined)
      ?.split('/')
      .at(-1);
    if (master !== undefined && !isVrf(kernel, asking, master))
      uses.push({ text: `its interface ${name} is a port of ${master}${by}`, todo: `ip link set ${each} nomaster` });
    if (listened.has(index))
      uses.push({
        text: `a program receives the packets of its interface ${name}${by}`,
        todo: `stop the program ("ss -0p" shows it)`,
      });
    if (dialled.has(each))
      uses.push({ text: `PPPoE runs over its interface ${name}${by}`, todo: 'stop that connection ("poff -a")' });
  }
  return uses;
}

/** The interface, and all interfaces that use it. */
function withUppers(kernel: KernelPort, asking: Asking, name: string): Set<string> {
  const names = new Set([name]);
  // Interfaces added in the loop are visited too.
  for (const each of names)
    for (const entry of asking.ask(() => kernel.list(`${CLASS}/${each}`), []))
      if (entry.startsWith('upper_')) names.add(entry.slice('upper_'.length));
  return names;
}

/** Whether it is a VRF. An interface in a VRF has its own routes; being in one is not a use. */
function isVrf(kernel: KernelPort, asking: Asking, name: string): boolean {
  return /^DEVTYPE=vrf$/m.test(asking.ask(() => kernel.readText(`${CLASS}/${name}/uevent`), undefined) ?? '');
}

/** The most important use by routes or addresses of one interface; `undefined` if there is none. */
function mostTelling(routes: readonly KernelRoute[]): string | undefined {
  const used = routes.filter((route) => route.type !== 'other' && !isOfEveryInterface(route));
  const unicast = used.filter(({ type }) => type === 'unicast');
  const route = unicast.find(isDefault) ?? unicast.at(0);
  if (route !== undefined) return `carries ${textOf(route)}`;
  const address = used.at(0);
  return address === undefined ? undefined : `has the address ${address.destination.split('/')[0]}`;
}

/** Link-local addresses and multicast, which are no use. */
function isOfEveryInterface({ family, destination }: KernelRoute): boolean {
  return family === 4 ? /^(?:169\.254|22[4-9]|23\d)\./.test(destination) : /^(?:fe[89ab]|ff)/.test(destination);
}

function isDefault({ destination }: KernelRoute): boolean {
  return destination.endsWith('/0');
}

const MAIN_TABLE = 254;

function textOf(route: KernelRoute): string {
  const { family, destination, table } = route;
  const text = isDefault(route) ? `the ${family === 6 ? 'IPv6 ' : ''}default route` : `the route to ${destination}`;
  return table === MAIN_TABLE ? text : `${text} of table ${table}`;
}
