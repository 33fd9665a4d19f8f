/** What a bus returns for an RDMA device of the kernel. */
import { DmaError } from '../../errors.js';
import type { VerbsAsyncEvent } from '../../platform/rdma/verbs-types.js';
import type { RdmaContexts } from '../../rdma/context.js';
import type { IdMatch, OpenedDevice } from '../model.js';
import { describeRdmaDevice } from './facts.js';

/** Events that are reported as errors of the device. The device may continue to work after them. */
const ERRORS: readonly string[] = [
  'PORT_ERR',
  'CQ_ERR',
  'QP_FATAL',
  'QP_REQ_ERR',
  'QP_ACCESS_ERR',
  'SRQ_ERR',
  'WQ_FATAL',
];

/**
 * Opens the RDMA device `name`. It stays with its kernel driver. If it is opened several times, its protection domain
 * is shared.
 *
 * @param ids the ids of the PCI function, if the device is one
 * @throws DmaError as `RdmaContexts.open`
 */
export function openRdma(contexts: RdmaContexts, name: string, ids?: Required<IdMatch>): OpenedDevice {
  const rdma = contexts.open(name);
  const ends: (() => void)[] = [];
  let open = true;
  return {
    ids,
    access: undefined,
    handle: rdma,
    describe: () => describeRdmaDevice(contexts.verbs, name),
    onError(failed) {
      const listener = (event: VerbsAsyncEvent): void => {
        if (ERRORS.includes(event.name)) failed(asError(name, event));
      };
      ends.push(rdma.onEvent(listener));
    },
    onLost(lost) {
      ends.push(rdma.onLost(lost));
    },
    close() {
      if (!open) return;
      open = false;
      for (const end of ends) end();
      rdma.release();
    },
  };
}

function asError(device: string, { name, port, qp }: VerbsAsyncEvent): DmaError {
  const where = port === undefined ? (qp === undefined ? '' : ` on queue pair ${qp.number}`) : ` on port ${port}`;
  const code = name === 'QP_ACCESS_ERR' ? 'EACCES' : 'EIO';
  return new DmaError({ code, operation: 'rdma', device, reason: `the device reported ${name}${where}` });
}
