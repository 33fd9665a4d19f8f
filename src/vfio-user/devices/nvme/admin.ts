/** The commands of the admin queue (NVM Express Base Specification 1.4, section 5). */
import {
  ADMIN,
  ALL_NAMESPACES,
  CNS,
  EVENT,
  EVENT_TYPE,
  eventResult,
  FORMAT,
  FUSED_MASK,
  LOG,
  PSDT,
  QUEUE,
} from '../../../nvme/commands.js';
import { CHANGED_NAMESPACES, EFFECTS, FIRMWARE_LOG } from '../../../nvme/log-pages.js';
import { IDENTIFY_BYTES, putPadded } from '../../../nvme/identify.js';
import { STATUS, STATUS_FIELD } from '../../../nvme/status.js';
import type { Command } from './command.js';
import type { Core } from './core.js';
import { getFeatures, setFeatures } from './feature-commands.js';
import { controllerPage, descriptorPage, FIRMWARE, listPage, namespacePage } from './identify-pages.js';
import { IO_COMMANDS } from './io.js';
import { FORMATS, type Namespace } from './namespace.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';
import { ShadowDoorbells } from './shadow-doorbells.js';

const { DNR } = STATUS_FIELD;

type Handler = (core: Core, command: Command) => void;

/** By opcode. */
const COMMANDS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [ADMIN.DELETE_SQ, deleteSubmissionQueue],
  [ADMIN.CREATE_SQ, createSubmissionQueue],
  [ADMIN.GET_LOG_PAGE, getLogPage],
  [ADMIN.DELETE_CQ, deleteCompletionQueue],
  [ADMIN.CREATE_CQ, createCompletionQueue],
  [ADMIN.IDENTIFY, identify],
  [ADMIN.ABORT, abort],
  [ADMIN.SET_FEATURES, setFeatures],
  [ADMIN.GET_FEATURES, getFeatures],
  [ADMIN.ASYNC_EVENT, (core, command) => core.events.request(command)],
  [ADMIN.DOORBELL_BUFFER_CONFIG, configureDoorbells],
  [ADMIN.FORMAT, format],
]);

/** Carries out a command of the admin queue. */
export function executeAdmin(core: Core, command: Command): void {
  const handler = COMMANDS.get(command.opcode);
  if (handler === undefined || (handler === configureDoorbells && !core.settings.shadowDoorbells))
    core.engine.complete(command, STATUS.INVALID_OPCODE | DNR);
  // Admin commands have PRPs only (section 4.4).
  else if ((command.flags & FUSED_MASK) !== 0 || command.flags >>> PSDT.SHIFT !== PSDT.PRP)
    core.engine.complete(command, STATUS.INVALID_FIELD | DNR);
  else handler(core, command);
}

/** The address in the first PRP entry. */
function firstAddress(command: Command): number {
  return command.dword(7) * 2 ** 32 + command.dword(6);
}

function isPageAligned(core: Core, lowWord: number): boolean {
  return (lowWord & (core.engine.pageSize - 1)) === 0;
}

/** Is this a queue that the host may have? */
function isQueueId(core: Core, id: number): boolean {
  return id > 0 && id <= (core.features.queues ?? core.queues);
}

/** Checks what creating a queue of either kind has in common. Returns a status. */
function checkQueue(core: Core, command: Command, isUsed: boolean): number {
  const id = command.dword(10) & 0xffff;
  const size = (command.dword(10) >>> 16) + 1;
  if (!isQueueId(core, id) || isUsed) return STATUS.INVALID_QUEUE_ID | DNR;
  // A queue of one entry could hold nothing.
  if (size < 2 || size > core.settings.entries) return STATUS.INVALID_QUEUE_SIZE | DNR;
  if ((command.dword(11) & QUEUE.CONTIGUOUS) === 0) return STATUS.INVALID_FIELD | DNR;
  if (!isPageAligned(core, command.dword(6))) return STATUS.INVALID_PRP_OFFSET | DNR;
  return STATUS.SUCCESS;
}

function createCompletionQueue(core: Core, command: Command): void {
  const { engine } = core;
  const id = command.dword(10) & 0xffff;
  const vector = command.dword(11) >>> 16;
  let status = checkQueue(core, command, engine.cqs.has(id));
  if (status === 0 && vector > core.queues) status = STATUS.INVALID_VECTOR | DNR;
  if (status === 0) {
    const size = (command.dword(10) >>> 16) + 1;
    const interrupts = (command.dword(11) & QUEUE.INTERRUPTS) !== 0;
    engine.addCompletionQueue(new CompletionQueue(id, firstAddress(command), size, vector, interrupts));
  }
  engine.complete(command, status);
}

function createSubmissionQueue(core: Core, command: Command): void {
  const { engine } = core;
  const id = command.dword(10) & 0xffff;
  const cqId = command.dword(11) >>> 16;
  const cq = cqId === 0 ? undefined : engine.cqs.get(cqId);
  let status = checkQueue(core, command, engine.sqs.has(id));
  if (status === 0 && cq === undefined)
    status = (isQueueId(core, cqId) ? STATUS.INVALID_CQ : STATUS.INVALID_QUEUE_ID) | DNR;
  if (status === 0 && cq !== undefined) {
    const size = (command.dword(10) >>> 16) + 1;
    engine.addSubmissionQueue(new SubmissionQueue(id, firstAddress(command), size, cq));
  }
  engine.complete(command, status);
}

function deleteSubmissionQueue(core: Core, command: Command): void {
  const { engine } = core;
  const id = command.dword(10) & 0xffff;
  const queue = id === 0 ? undefined : engine.sqs.get(id);
  if (queue === undefined || queue.onIdle !== undefined) {
    engine.complete(command, STATUS.INVALID_QUEUE_ID | DNR);
    return;
  }
  const end = (): void => {
    engine.deleteSubmissionQueue(queue);
    engine.complete(command, STATUS.SUCCESS);
  };
  if (queue.outstanding === 0) {
    end();
    return;
  }
  // What is under way is waited for; what is held ends now.
  queue.onIdle = end;
  for (const held of [...engine.held]) if (held.queue === queue) engine.abort(held, STATUS.ABORT_SQ_DELETED);
}

function deleteCompletionQueue(core: Core, command: Command): void {
  const { engine } = core;
  const id = command.dword(10) & 0xffff;
  const queue = id === 0 ? undefined : engine.cqs.get(id);
  if (queue === undefined) engine.complete(command, STATUS.INVALID_QUEUE_ID | DNR);
  else if (queue.users > 0) engine.complete(command, STATUS.INVALID_QUEUE_DELETION | DNR);
  else engine.deleteCompletionQueue(queue, () => engine.complete(command, STATUS.SUCCESS));
}

function abort(core: Core, command: Command): void {
  const { engine } = core;
  const sq = command.dword(10) & 0xffff;
  const cid = command.dword(10) >>> 16;
  for (const held of engine.held) {
    if (held.queue.id !== sq || held.cid !== cid) continue;
    engine.abort(held, STATUS.ABORT_REQUESTED);
    engine.complete(command, STATUS.SUCCESS, 0);
    return;
  }
  // Bit 0: it was not aborted. A call to a file can not be taken back.
  engine.complete(command, STATUS.SUCCESS, 1);
}

function identify(core: Core, command: Command): void {
  const { engine } = core;
  const { nsid } = command;
  const answer = (page: Uint8Array): void => core.send(command, page, IDENTIFY_BYTES);
  const refuse = (status: number): void => engine.complete(command, status | DNR);
  const cns = command.dword(10) & 0xff;
  switch (cns) {
    case CNS.CONTROLLER:
      return answer(controllerPage(core));
    case CNS.NAMESPACE:
    case CNS.ALLOCATED_NAMESPACE: {
      // All namespaces have the same formats, which is what this asks for.
      const asked = nsid === ALL_NAMESPACES ? [...core.namespaces.keys()].at(0) : nsid;
      if (asked === undefined || asked === 0 || !core.namespaces.has(asked)) {
        // An id that could be valid has a page of zeroes.
        const inRange = asked !== undefined && asked > 0 && asked <= Math.max(0, ...core.namespaces.keys());
        return inRange ? answer(new Uint8Array(IDENTIFY_BYTES)) : refuse(STATUS.INVALID_NAMESPACE);
      }
      const namespace = cns === CNS.NAMESPACE ? core.namespace(asked) : core.namespaces.get(asked);
      return answer(namespace === undefined ? new Uint8Array(IDENTIFY_BYTES) : namespacePage(namespace));
    }
    case CNS.ACTIVE_NAMESPACES:
    case CNS.ALLOCATED_NAMESPACES:
      if (nsid >= 0xfffffffe) return refuse(STATUS.INVALID_NAMESPACE);
      return answer(listPage(cns === CNS.ACTIVE_NAMESPACES ? core.attached() : [...core.namespaces.keys()], nsid));
    case CNS.NAMESPACE_DESCRIPTORS: {
      const namespace = core.namespace(nsid);
      return namespace === undefined ? refuse(STATUS.INVALID_NAMESPACE) : answer(descriptorPage(namespace));
    }
    default:
      return refuse(STATUS.INVALID_FIELD);
  }
}

function getLogPage(core: Core, command: Command): void {
  const { engine } = core;
  const log = command.dword(10) & 0xff;
  const keep = (command.dword(10) & (1 << 15)) !== 0;
  const dwords = (command.dword(11) & 0xffff) * 65536 + (command.dword(10) >>> 16) + 1;
  const offset = command.dword(13) * 2 ** 32 + command.dword(12);
  const length = dwords * 4;
  const page = logPage(core, log);
  if (page === undefined) {
    engine.complete(command, STATUS.INVALID_LOG_PAGE | DNR);
    return;
  }
  if (length > core.maxTransfer || offset % 4 !== 0 || offset > page.length) {
    engine.complete(command, STATUS.INVALID_FIELD | DNR);
    return;
  }
  // This log is of the controller as a whole.
  if (log === LOG.SMART && command.nsid !== 0 && command.nsid !== ALL_NAMESPACES) {
    engine.complete(command, STATUS.INVALID_FIELD | DNR);
    return;
  }
  const answer = (bytes: Uint8Array): void => {
    const part = new Uint8Array(length);
    part.set(bytes.subarray(offset, offset + length));
    const told = [...core.changed];
    core.send(command, part, length, 0, () => {
      if (keep) return;
      if (log === LOG.CHANGED_NAMESPACES) for (const id of told) core.changed.delete(id);
      core.events.seen(log);
    });
  };
  if (log !== LOG.ERROR) return answer(page);
  // What is in the host's memory is as old as the last turn.
  core.hostMemory.recall(
    command,
    (found) => answer(found !== undefined && Buffer.compare(found, page) === 0 ? found : page),
    () => core.events.tell(eventResult(EVENT_TYPE.ERROR, EVENT.ERROR.TRANSIENT, LOG.ERROR)),
  );
}

function logPage(core: Core, log: number): Uint8Array | undefined {
  switch (log) {
    case LOG.ERROR:
      return core.health.errorPage();
    case LOG.SMART:
      return core.health.smartPage();
    case LOG.FIRMWARE: {
      const page = new Uint8Array(FIRMWARE_LOG.BYTES);
      page[FIRMWARE_LOG.ACTIVE] = 1;
      putPadded(page, FIRMWARE_LOG.REVISIONS, 8, FIRMWARE);
      return page;
    }
    case LOG.CHANGED_NAMESPACES: {
      const words = new Uint32Array(CHANGED_NAMESPACES.BYTES / 4);
      const ids = [...core.changed].sort((a, b) => a - b);
      if (ids.length > CHANGED_NAMESPACES.MAX) words[0] = ALL_NAMESPACES;
      else words.set(ids);
      return new Uint8Array(words.buffer);
    }
    case LOG.COMMAND_EFFECTS: {
      const words = new Uint32Array(EFFECTS.BYTES / 4);
      for (const opcode of COMMANDS.keys()) {
        if (opcode === ADMIN.DOORBELL_BUFFER_CONFIG && !core.settings.shadowDoorbells) continue;
        const changes = opcode === ADMIN.FORMAT ? EFFECTS.CONTENT | EFFECTS.NAMESPACE : 0;
        words[EFFECTS.ADMIN / 4 + opcode] = EFFECTS.SUPPORTED | changes;
      }
      for (const { opcode, changes } of IO_COMMANDS)
        words[EFFECTS.IO / 4 + opcode] = EFFECTS.SUPPORTED | (changes ? EFFECTS.CONTENT : 0);
      return new Uint8Array(words.buffer);
    }
    default:
      return undefined;
  }
}

function configureDoorbells(core: Core, command: Command): void {
  const { engine, settings } = core;
  const doorbells = firstAddress(command);
  const events = command.dword(9) * 2 ** 32 + command.dword(8);
  if (!isPageAligned(core, command.dword(6)) || !isPageAligned(core, command.dword(8))) {
    engine.complete(command, STATUS.INVALID_FIELD | DNR);
    return;
  }
  const length = Math.min(engine.pageSize, 2 * (settings.queues + 1) * settings.doorbellStride);
  const shadow = new ShadowDoorbells(engine.dma, doorbells, events, length, settings.doorbellStride);
  if (!shadow.open()) {
    // Without memory that can be looked at, the registers go on being the doorbells.
    engine.complete(command, STATUS.DATA_TRANSFER_ERROR);
    return;
  }
  // The host goes on from the values that there are.
  for (const { id, tail } of engine.sqs.values()) if (id !== 0) shadow.setTail(id, tail);
  for (const { id, head } of engine.cqs.values()) if (id !== 0) shadow.setHead(id, head);
  engine.shadow?.close();
  engine.shadow = shadow;
  engine.complete(command, STATUS.SUCCESS);
}

function format(core: Core, command: Command): void {
  const { engine } = core;
  const settings = command.dword(10);
  const index = settings & FORMAT.LBAF_MASK;
  const erase = (settings >>> FORMAT.SES_SHIFT) & FORMAT.SES_MASK;
  const refuse = (status: number): void => engine.complete(command, status | DNR);
  if (index >= FORMATS.length || ((settings >>> FORMAT.PI_SHIFT) & 0x7) !== 0) return refuse(STATUS.INVALID_FORMAT);
  // 0: no secure erase, 1: erase user data; cryptographic erase is not offered.
  if (erase > 1) return refuse(STATUS.INVALID_FIELD);
  const wanted: Namespace[] = [];
  if (command.nsid === ALL_NAMESPACES) wanted.push(...core.namespaces.values());
  else {
    const namespace = core.namespace(command.nsid);
    if (namespace === undefined) return refuse(STATUS.INVALID_NAMESPACE);
    wanted.push(namespace);
  }
  if (wanted.some(({ image }) => image.readOnly)) return refuse(STATUS.NAMESPACE_WRITE_PROTECTED);
  if (wanted.some(({ formatting }) => formatting)) return engine.complete(command, STATUS.FORMAT_IN_PROGRESS);
  for (const namespace of wanted) namespace.formatting = true;
  let left = wanted.length;
  let worst = 0;
  engine.call(
    command,
    (done) => {
      for (const namespace of wanted)
        namespace.image.deallocate(0, namespace.image.bytes, (status) => {
          namespace.formatting = false;
          if (status === 0) namespace.format = index;
          else worst = status;
          if (--left === 0) done(worst);
        });
    },
    (status) => engine.complete(command, status),
  );
}
