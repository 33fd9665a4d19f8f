/** RDMA devices, as shown to people and as JSON. */
import { errorDocument, isDmaError, type DmaError } from '../../errors.js';
import { IBV_ODP_SUPPORT, IBV_ODP_SUPPORT_IMPLICIT } from '../../platform/rdma/abi/devices.js';
import type { VerbsPort } from '../../platform/rdma/verbs-port.js';
import type {
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsPortAttributes,
} from '../../platform/rdma/verbs-types.js';
import { ipv4Of } from '../../rdma/gid.js';
import { formatSize } from '../../units.js';
import type { Description, DescriptionPart, DescriptionTable, TableCell, TableColumn } from '../description.js';

/** Everything that is shown about a device. */
export interface RdmaFacts {
  readonly device: VerbsDevice;
  /** Its attributes, or the error of opening it. */
  readonly answers: RdmaAnswers | DmaError;
}

interface RdmaAnswers {
  readonly attributes: VerbsDeviceAttributes;
  /** The ports, from port 1 on. */
  readonly ports: readonly VerbsPortAttributes[];
  readonly gids: readonly VerbsGid[];
}

/**
 * The RDMA devices of this machine; empty if RDMA is not available. Each device is opened, queried and closed.
 *
 * @param only the kernel's name of a single device
 */
export function rdmaFacts(verbs: VerbsPort, only?: string): RdmaFacts[] {
  if (verbs.limitation !== undefined) return [];
  const wanted = verbs.devices().filter(({ name }) => only === undefined || name === only);
  return wanted.map((device) => {
    try {
      const context = verbs.open(device.name);
      try {
        const attributes = verbs.queryDevice(context);
        const ports = Array.from({ length: attributes.ports }, (_, index) => verbs.queryPort(context, index + 1));
        return { device, answers: { attributes, ports, gids: verbs.gids(context) } };
      } finally {
        verbs.close(context);
      }
    } catch (error) {
      if (!isDmaError(error)) throw error;
      return { device, answers: error };
    }
  });
}

/** A device as JSON. Limits are counts, or bytes if their name says so. */
export function rdmaDocument({ device, answers }: RdmaFacts): object {
  const { name, guid, node, transport, devicePath, parent } = device;
  const facts = { name: `rdma:${name}`, guid, node, transport, devicePath, parent };
  if (isDmaError(answers)) return { ...facts, ok: false, error: errorDocument(answers) };
  const { attributes, ports, gids } = answers;
  const { firmware, vendorId, vendorPart, atomics, maxMrs, maxMrLength, maxMws, maxPds, maxQps, maxCqs } = attributes;
  const { maxRequests, maxSges, maxCqEntries, pageSizes, maxInitiatorDepth, maxResponderDepth } = attributes;
  return {
    ...facts,
    ok: true,
    ...{ firmware, vendorId, vendorPart },
    ports: ports.map(({ state, linkLayer, activeMtu, maxMtu, maxMessage, lid }, index) => ({
      port: index + 1,
      ...{ state, linkLayer, activeMtu, maxMtu, maxMessage, lid },
      gids: gids
        .filter(({ port }) => port === index + 1)
        .map(({ index: at, gid, type }) => ({ index: at, gid, type, ipv4: ipv4Of(gid) })),
    })),
    limits: {
      ...{ regions: maxMrs, regionBytes: maxMrLength, windows: maxMws, protectionDomains: maxPds, queuePairs: maxQps },
      ...{ requests: maxRequests, segments: maxSges, completionQueues: maxCqs, completions: maxCqEntries },
      ...{ readsAsked: maxInitiatorDepth, readsAnswered: maxResponderDepth, pageSizes },
    },
    atomics,
    onDemandPaging: pagingOf(attributes),
  };
}

/** All devices, or what to install for RDMA. */
export function describeRdma(verbs: VerbsPort): Description {
  const { limitation } = verbs;
  const facts = rdmaFacts(verbs);
  const document = { rdma: facts.map(rdmaDocument), rdmaLimitation: limitation };
  return { document, text: limitation === undefined ? rdmaText(facts) : [`RDMA: ${limitation}`] };
}

/** One device. @param name the kernel's name of it */
export function describeRdmaDevice(verbs: VerbsPort, name: string): Description {
  const facts = rdmaFacts(verbs, name);
  return { document: { rdma: facts.map(rdmaDocument)[0] }, text: rdmaText(facts) };
}

/** The devices, their ports and their addresses, in tables. */
export function rdmaText(all: readonly RdmaFacts[]): DescriptionPart[] {
  if (all.length === 0) return [];
  const heads = (...texts: readonly string[]): TableColumn[] => texts.map((head) => ({ head }));
  const right = (...texts: readonly string[]): TableColumn[] => texts.map((head) => ({ head, align: 'right' }));
  const devices: DescriptionTable = {
    columns: [
      ...heads('RDMA', 'TRANSPORT', 'ATOMICS', 'ON-DEMAND PAGING'),
      ...right('REGIONS', 'WINDOWS', 'QUEUE PAIRS', 'REQUESTS', 'COMPLETIONS'),
    ],
    rows: all.map(({ device, answers }) => {
      const first = [`rdma:${device.name}`, device.transport];
      if (isDmaError(answers)) return [...first, `can not be opened: ${answers.reason}`, '', '', '', '', '', ''];
      const { attributes } = answers;
      const { atomics, maxMrs, maxMws, maxQps, maxRequests, maxCqEntries } = attributes;
      return [
        ...first,
        atomics,
        pagingOf(attributes),
        ...[maxMrs, maxMws, maxQps, maxRequests, maxCqEntries].map(String),
      ];
    }),
  };
  const rows = all.flatMap(({ device, answers }) =>
    isDmaError(answers) ? [] : answers.ports.flatMap((port, index) => portRows(device, port, index + 1, answers)),
  );
  if (rows.length === 0) return [devices];
  return [devices, '', { columns: heads('PORT', 'STATE', 'LINK', 'MTU', 'GID INDEX', 'GID', 'TYPE', 'IPV4'), rows }];
}

/** A row for the port with its first address, and one for each further address. */
function portRows(
  { name }: VerbsDevice,
  { state, linkLayer, activeMtu }: VerbsPortAttributes,
  number: number,
  { gids }: RdmaAnswers,
): TableCell[][] {
  const own = gids.filter(({ port }) => port === number);
  const shown = { text: state, tone: state === 'active' ? 'good' : 'bad' } as const;
  const port = [`${name}/${number}`, shown, linkLayer, formatSize(activeMtu)];
  const addresses = own.map(({ index, gid, type }) => [String(index), gid, type, ipv4Of(gid) ?? '']);
  if (addresses.length === 0) return [[...port, '-', 'none', '', '']];
  return addresses.map((address, n) => [...(n === 0 ? port : ['', '', '', '']), ...address]);
}

function pagingOf({ odp }: VerbsDeviceAttributes): 'none' | 'explicit' | 'explicit and implicit' {
  if ((odp.general & IBV_ODP_SUPPORT) === 0) return 'none';
  return (odp.general & IBV_ODP_SUPPORT_IMPLICIT) === 0 ? 'explicit' : 'explicit and implicit';
}
