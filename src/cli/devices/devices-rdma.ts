/** RDMA devices, as commands tell them to people and to programs. */
import { isDmaError, type DmaError } from '../../errors.js';
import { formatSize, type Platform } from '../../index.js';
import { IBV_ODP_SUPPORT, IBV_ODP_SUPPORT_IMPLICIT } from '../../platform/rdma/abi/devices.js';
import type {
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsGid,
  VerbsPortAttributes,
} from '../../platform/rdma/verbs-types.js';
import { ipv4Of } from '../../rdma/gid.js';
import { failureDocument, type Output } from '../output.js';

/** All that is told about a device. */
export interface RdmaFacts {
  readonly device: VerbsDevice;
  /** What it says of itself, or why it can not be opened to be asked. */
  readonly answers: RdmaAnswers | DmaError;
}

interface RdmaAnswers {
  readonly attributes: VerbsDeviceAttributes;
  /** Port 1 and so on. */
  readonly ports: readonly VerbsPortAttributes[];
  readonly gids: readonly VerbsGid[];
}

/**
 * The RDMA devices of this machine; none where there can be none. Each is opened, asked and closed.
 *
 * @param only the kernel's name of the one that is asked for
 */
export function rdmaFacts({ verbs }: Platform, only?: string): RdmaFacts[] {
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

/** A device for programs. Limits are counts unless they are named bytes. */
export function rdmaDocument({ device, answers }: RdmaFacts): object {
  const { name, guid, node, transport, devicePath, parent } = device;
  const facts = { name: `rdma:${name}`, guid, node, transport, devicePath, parent };
  if (isDmaError(answers)) return { ...facts, ...failureDocument(answers) };
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

/** The part of the list of all devices that is about RDMA: the devices, or what there has to be installed for them. */
export function printAllRdma(output: Output, { verbs }: Platform, all: readonly RdmaFacts[]): void {
  if (all.length === 0 && verbs.limitation === undefined) return;
  output.text();
  if (verbs.limitation === undefined) printRdma(output, all);
  else output.text(`RDMA: ${verbs.limitation}`);
}

/** The devices, their ports and their addresses, in tables. */
export function printRdma(output: Output, all: readonly RdmaFacts[]): void {
  const heads = (...texts: readonly string[]): { head: string }[] => texts.map((head) => ({ head }));
  const right = (...texts: readonly string[]): { head: string; align: 'right' }[] =>
    texts.map((head) => ({ head, align: 'right' }));
  output.table(
    [
      ...heads('RDMA', 'TRANSPORT', 'ATOMICS', 'ON-DEMAND PAGING'),
      ...right('REGIONS', 'WINDOWS', 'QUEUE PAIRS', 'REQUESTS', 'COMPLETIONS'),
    ],
    all.map(({ device, answers }) => {
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
  );
  const rows = all.flatMap(({ device, answers }) =>
    isDmaError(answers)
      ? []
      : answers.ports.flatMap((port, index) => portRows(output, device, port, index + 1, answers)),
  );
  if (rows.length === 0) return;
  output.text();
  output.table(heads('PORT', 'STATE', 'LINK', 'MTU', 'GID INDEX', 'GID', 'TYPE', 'IPV4'), rows);
}

/** A row for the port, and one for each address but the first. */
function portRows(
  output: Output,
  { name }: VerbsDevice,
  { state, linkLayer, activeMtu }: VerbsPortAttributes,
  number: number,
  { gids }: RdmaAnswers,
): string[][] {
  const own = gids.filter(({ port }) => port === number);
  const shown = state === 'active' ? output.good(state) : output.bad(state);
  const port = [`${name}/${number}`, shown, linkLayer, formatSize(activeMtu)];
  const addresses = own.map(({ index, gid, type }) => [String(index), gid, type, ipv4Of(gid) ?? '']);
  if (addresses.length === 0) return [[...port, '-', 'none', '', '']];
  return addresses.map((address, n) => [...(n === 0 ? port : ['', '', '', '']), ...address]);
}

function pagingOf({ odp }: VerbsDeviceAttributes): 'none' | 'explicit' | 'explicit and implicit' {
  if ((odp.general & IBV_ODP_SUPPORT) === 0) return 'none';
  return (odp.general & IBV_ODP_SUPPORT_IMPLICIT) === 0 ? 'explicit' : 'explicit and implicit';
}
