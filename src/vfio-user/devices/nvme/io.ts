/** The commands of I/O queues (NVM Express Base Specification 1.4, section 6). */
import { ALL_NAMESPACES, DSM, FUSED_MASK, IO_CDW12, NVM, PSDT } from '../../../nvme/commands.js';
import { STATUS, STATUS_FIELD } from '../../../nvme/status.js';
import { isDmaError } from '../../../errors.js';
import { MiB } from '../../../units.js';
import type { Command } from './command.js';
import type { Core } from './core.js';
import { WAIT } from './lists.js';
import type { Namespace } from './namespace.js';
import { BUCKET } from './segments.js';

const { DNR } = STATUS_FIELD;

type Handler = (core: Core, command: Command, namespace: Namespace) => void;

/** By opcode. */
const COMMANDS: readonly (Handler | undefined)[] = table([
  [NVM.FLUSH, flush],
  [NVM.WRITE, write],
  [NVM.READ, read],
  [NVM.COMPARE, compare],
  [NVM.WRITE_ZEROES, writeZeroes],
  [NVM.DATASET_MANAGEMENT, manage],
  [NVM.VERIFY, verify],
]);

/** Opcodes of I/O commands that are there, and whether they change blocks. */
export const IO_COMMANDS: readonly { readonly opcode: number; readonly changes: boolean }[] = COMMANDS.flatMap(
  (handler, opcode) =>
    handler === undefined
      ? []
      : [{ opcode, changes: handler === write || handler === writeZeroes || handler === manage }],
);

function table(entries: readonly (readonly [number, Handler])[]): (Handler | undefined)[] {
  const by = new Array<Handler | undefined>(256).fill(undefined);
  for (const [opcode, handler] of entries) by[opcode] = handler;
  return by;
}

/** Carries out a command of an I/O queue. */
export function executeIo(core: Core, command: Command): void {
  const { engine } = core;
  const handler = COMMANDS[command.opcode];
  if (handler === undefined) {
    engine.complete(command, STATUS.INVALID_OPCODE | DNR);
    return;
  }
  const { flags } = command;
  const psdt = flags >>> PSDT.SHIFT;
  if ((flags & FUSED_MASK) !== 0 || psdt === 3 || (psdt !== PSDT.PRP && !core.settings.sgl)) {
    engine.complete(command, STATUS.INVALID_FIELD | DNR);
    return;
  }
  if (command.nsid === ALL_NAMESPACES && command.opcode === NVM.FLUSH) {
    engine.call(
      command,
      (ended) => core.syncAll(ended),
      (status) => engine.complete(command, status),
    );
    return;
  }
  const namespace = core.namespace(command.nsid);
  if (namespace === undefined) engine.complete(command, STATUS.INVALID_NAMESPACE | DNR);
  else if (namespace.formatting) engine.complete(command, STATUS.FORMAT_IN_PROGRESS);
  else handler(core, command, namespace);
}

/** Finds the blocks of a command. Returns a status. */
function locate(command: Command, namespace: Namespace): number {
  const first = command.dword(11) * 2 ** 32 + command.dword(10);
  const count = (command.dword(12) & IO_CDW12.BLOCKS_MASK) + 1;
  if (first + count > namespace.blocks) return STATUS.LBA_OUT_OF_RANGE | DNR;
  command.position = first * namespace.blockSize;
  command.length = count * namespace.blockSize;
  return STATUS.SUCCESS;
}

/** Finds the blocks and the memory of a command that moves data. Returns whether it may go on. */
function prepare(core: Core, command: Command, namespace: Namespace, toHost: boolean, handler: Handler): boolean {
  let status = locate(command, namespace);
  if (status === 0 && command.length > core.maxTransfer) status = STATUS.INVALID_FIELD | DNR;
  if (status === 0) {
    status = core.engine.point(command, command.length, toHost);
    if (status === WAIT) {
      core.engine.whenListed(command, () => handler(core, command, namespace));
      return false;
    }
  }
  if (status === 0) return true;
  core.engine.complete(command, status);
  return false;
}

function read(core: Core, command: Command, namespace: Namespace): void {
  if (!prepare(core, command, namespace, true, read)) return;
  core.health.readCommands++;
  core.health.read += command.length / 512;
  if (!take(core, command, namespace, true)) readAlone(core, command, namespace);
}

function readAlone(core: Core, command: Command, namespace: Namespace): void {
  const { engine } = core;
  const { image } = namespace;
  const { length } = command;
  if (image.instant && moveNow(core, command, namespace, true)) return;
  const buffer = engine.buffer(length);
  const end = (status: number): void => {
    engine.giveBuffer(buffer);
    ended(core, command, status);
  };
  const deliver = (status: number): void => {
    if (status === 0) engine.scatter(command, buffer, end);
    else end(status);
  };
  if (image.instant) deliver(image.readNow(command.position, buffer));
  else engine.call(command, (done) => image.read(command.position, buffer, done), deliver);
}

function write(core: Core, command: Command, namespace: Namespace): void {
  if (refuseReadOnly(core, command, namespace) || !prepare(core, command, namespace, false, write)) return;
  core.health.writeCommands++;
  core.health.written += command.length / 512;
  if (!take(core, command, namespace, false)) writeAlone(core, command, namespace);
}

function writeAlone(core: Core, command: Command, namespace: Namespace): void {
  const { engine } = core;
  const { image } = namespace;
  const { length } = command;
  if (image.instant && moveNow(core, command, namespace, false)) return;
  const buffer = engine.buffer(length);
  const end = (status: number): void => {
    engine.giveBuffer(buffer);
    written(core, command, namespace, status);
  };
  engine.gather(command, buffer, (status) => {
    if (status !== 0) end(status);
    else if (image.instant) end(image.writeNow(command.position, buffer));
    else engine.call(command, (done) => image.write(command.position, buffer, done), end);
  });
}

/** Puts a read or a write into the batch of this turn. Returns false if it can not go that way. */
function take({ batch, engine }: Core, command: Command, namespace: Namespace, toHost: boolean): boolean {
  if (batch === undefined || !engine.inTurn) return false;
  try {
    if (!batch.take(command, namespace, toHost)) return false;
  } catch (error) {
    if (!isDmaError(error)) throw error;
    engine.complete(command, STATUS.DATA_TRANSFER_ERROR);
    return true;
  }
  engine.moved(command.length);
  return true;
}

/** A read or a write of the batch is over. What was not moved as a whole goes the other way, which tells why. */
export function moved(core: Core, command: Command, namespace: Namespace, toHost: boolean, whole: boolean): void {
  if (!whole) (toHost ? readAlone : writeAlone)(core, command, namespace);
  else if (toHost) ended(core, command, STATUS.SUCCESS);
  else written(core, command, namespace, STATUS.SUCCESS);
}

/**
 * Reads or writes an image that never waits, straight into or out of the host's memory. Returns false if that is not in
 * pieces that can be reached so.
 */
function moveNow(core: Core, command: Command, namespace: Namespace, toHost: boolean): boolean {
  const { engine } = core;
  const { segments, position, length } = command;
  const { image } = namespace;
  const access = toHost ? 'write' : 'read';
  let status: number;
  try {
    if (segments.count === 1 && segments.iovas[0] !== BUCKET) {
      const bytes = engine.dma.direct(segments.iovas[0], length, access);
      if (bytes === undefined) return false;
      status = toHost ? image.readNow(position, bytes) : image.writeNow(position, bytes);
    } else {
      // All of it is found before the first byte moves.
      const parts: Uint8Array[] = [];
      for (let n = 0; n < segments.count; n++) {
        if (segments.iovas[n] === BUCKET) return false;
        const bytes = engine.dma.direct(segments.iovas[n], segments.lengths[n], access);
        if (bytes === undefined) return false;
        parts.push(bytes);
      }
      status = toHost ? image.readPartsNow(position, parts, length) : image.writePartsNow(position, parts, length);
    }
  } catch (error) {
    if (!isDmaError(error)) throw error;
    engine.complete(command, STATUS.DATA_TRANSFER_ERROR);
    return true;
  }
  engine.moved(length);
  if (toHost) ended(core, command, status);
  else written(core, command, namespace, status);
  return true;
}

/** A command has ended. */
function ended(core: Core, command: Command, status: number): void {
  // The medium failed.
  if (status >>> 8 === 2 && status !== STATUS.COMPARE_FAILURE) core.health.mediaErrors++;
  core.engine.complete(command, status);
}

/** Blocks were changed: is that to be on the disk before the host is told? */
function written(core: Core, command: Command, namespace: Namespace, status: number): void {
  const atOnce = (command.dword(12) & IO_CDW12.FUA) !== 0 || !core.features.writeCache;
  if (status !== 0 || !atOnce) {
    ended(core, command, status);
    return;
  }
  core.engine.call(
    command,
    (done) => core.sync(namespace, done),
    (synced) => ended(core, command, synced),
  );
}

function refuseReadOnly(core: Core, command: Command, namespace: Namespace): boolean {
  if (!namespace.image.readOnly) return false;
  core.engine.complete(command, STATUS.NAMESPACE_WRITE_PROTECTED | DNR);
  return true;
}

function flush(core: Core, command: Command, namespace: Namespace): void {
  core.engine.call(
    command,
    (done) => core.sync(namespace, done),
    (status) => ended(core, command, status),
  );
}

function compare(core: Core, command: Command, namespace: Namespace): void {
  if (!prepare(core, command, namespace, false, compare)) return;
  const { engine } = core;
  const wanted = engine.buffer(command.length);
  const there = engine.buffer(command.length);
  const end = (status: number): void => {
    engine.giveBuffer(wanted);
    engine.giveBuffer(there);
    ended(core, command, status);
  };
  engine.gather(command, wanted, (status) => {
    if (status !== 0) end(status);
    else
      engine.call(
        command,
        (done) => namespace.image.read(command.position, there, done),
        (came) => end(came !== 0 ? came : Buffer.compare(wanted, there) === 0 ? 0 : STATUS.COMPARE_FAILURE | DNR),
      );
  });
}

function writeZeroes(core: Core, command: Command, namespace: Namespace): void {
  if (refuseReadOnly(core, command, namespace)) return;
  const status = locate(command, namespace);
  if (status !== 0) {
    core.engine.complete(command, status);
    return;
  }
  const { image } = namespace;
  const { position, length } = command;
  const deallocate = (command.dword(12) & IO_CDW12.DEALLOCATE) !== 0;
  core.engine.call(
    command,
    (done) => (deallocate ? image.deallocate(position, length, done) : image.zero(position, length, done)),
    (done) => written(core, command, namespace, done),
  );
}

function verify(core: Core, command: Command, namespace: Namespace): void {
  const status = locate(command, namespace);
  if (status !== 0) {
    core.engine.complete(command, status);
    return;
  }
  const { engine } = core;
  const buffer = engine.buffer(Math.min(command.length, MiB));
  const next = (at: number): void => {
    const piece = buffer.subarray(0, Math.min(buffer.length, command.length - at));
    engine.call(
      command,
      (done) => namespace.image.read(command.position + at, piece, done),
      (came) => {
        if (came === 0 && at + piece.length < command.length) {
          next(at + piece.length);
          namespace.image.submit();
          return;
        }
        engine.giveBuffer(buffer);
        ended(core, command, came);
      },
    );
  };
  next(0);
}

/** Dataset management: deallocates ranges; its other attributes are hints that nothing depends on. */
function manage(core: Core, command: Command, namespace: Namespace): void {
  if (refuseReadOnly(core, command, namespace)) return;
  const { engine } = core;
  const ranges = (command.dword(10) & 0xff) + 1;
  core.receive(command, ranges * DSM.RANGE_BYTES, (bytes) => {
    const view = new DataView(bytes.buffer);
    const { blockSize, blocks, image } = namespace;
    const wanted: { readonly position: number; readonly length: number }[] = [];
    for (let at = 0; at < bytes.length; at += DSM.RANGE_BYTES) {
      const count = view.getUint32(at + DSM.RANGE_LENGTH, true);
      const first = view.getUint32(at + DSM.RANGE_LBA + 4, true) * 2 ** 32 + view.getUint32(at + DSM.RANGE_LBA, true);
      if (first + count > blocks) {
        engine.complete(command, STATUS.LBA_OUT_OF_RANGE | DNR);
        return;
      }
      if (count > 0) wanted.push({ position: first * blockSize, length: count * blockSize });
    }
    if ((command.dword(11) & DSM.DEALLOCATE) === 0) {
      engine.complete(command, STATUS.SUCCESS);
      return;
    }
    const next = (at: number, status: number): void => {
      if (status !== 0 || at === wanted.length) {
        written(core, command, namespace, status);
        return;
      }
      const { position, length } = wanted[at];
      engine.call(
        command,
        (done) => image.deallocate(position, length, done),
        (done) => next(at + 1, done),
      );
    };
    next(0, STATUS.SUCCESS);
  });
}
