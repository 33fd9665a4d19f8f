/** GET_FEATURES and SET_FEATURES (NVM Express Base Specification 1.4, sections 5.13 and 5.21). */
import { FEATURE, FEATURE_SAVE, FEATURE_SELECT } from '../../../nvme/commands.js';
import { STATUS } from '../../../nvme/status.js';
import { now } from '../../../timers.js';
import type { Command } from './command.js';
import type { Core } from './core.js';
import { WORDS } from './features.js';
import { TEMPERATURE } from './health.js';

/** Bits of a feature's capabilities (GET_FEATURES with select 3). */
const CHANGEABLE = 1 << 2;
/** Which of a sensor's two thresholds is meant: bit 20 of the word; the sensor is in bits 19:16. */
const UNDER = 1 << 20;

/** GET_FEATURES. */
export function getFeatures(core: Core, command: Command): void {
  const { engine, features } = core;
  const feature = command.dword(10) & 0xff;
  const select = (command.dword(10) >>> FEATURE_SELECT.SHIFT) & 0x7;
  const answer = (value: number): void => engine.complete(command, STATUS.SUCCESS, value);
  if (select > FEATURE_SELECT.CAPABILITIES) return engine.complete(command, STATUS.INVALID_FIELD);
  const word = WORDS.get(feature);
  const isCapabilities = select === FEATURE_SELECT.CAPABILITIES;
  // Nothing is saved, so that what was saved is the default.
  const isCurrent = select === FEATURE_SELECT.CURRENT;
  if (word !== undefined) {
    if (isCapabilities) return answer(word.mask === 0 ? 0 : CHANGEABLE);
    return answer(isCurrent ? features.word(feature) : word.initial);
  }
  if (isCapabilities && isKnown(core, feature)) return answer(CHANGEABLE);
  switch (feature) {
    case FEATURE.TEMPERATURE: {
      const wanted = command.dword(11);
      // Sensor 0 is the composite temperature, and there is no other.
      if (((wanted >>> 16) & 0xf) !== 0 || ((wanted >>> 20) & 0x3) > 1)
        return engine.complete(command, STATUS.INVALID_FIELD);
      const under = (wanted & UNDER) !== 0;
      if (!isCurrent) return answer(under ? 0 : TEMPERATURE.WARNING);
      return answer(under ? features.under : features.over);
    }
    case FEATURE.QUEUES: {
      const queues = (isCurrent ? features.queues : undefined) ?? core.queues;
      return answer((queues - 1) | ((queues - 1) << 16));
    }
    case FEATURE.VECTOR: {
      const vector = command.dword(11) & 0xffff;
      if (vector > core.queues) return engine.complete(command, STATUS.INVALID_FIELD);
      return answer(isCurrent ? features.vector(vector) : vector);
    }
    case FEATURE.TIMESTAMP:
      return core.send(command, isCurrent ? features.timestampNow(now()) : new Uint8Array(8), 8);
    case FEATURE.HOST_IDENTIFIER: {
      const length = (command.dword(11) & 1) === 1 ? 16 : 8;
      return core.send(command, isCurrent ? features.hostIdentifier : new Uint8Array(16), length);
    }
    case FEATURE.HOST_MEMORY:
      if (core.hostMemory.isOffered)
        return core.send(
          command,
          isCurrent ? core.hostMemory.page() : new Uint8Array(4096),
          4096,
          isCurrent && core.hostMemory.isEnabled ? 1 : 0,
        );
  }
  return engine.complete(command, STATUS.INVALID_FIELD);
}

/** Is it a feature that is more than one word? */
function isKnown(core: Core, feature: number): boolean {
  return (
    feature === FEATURE.TEMPERATURE ||
    feature === FEATURE.QUEUES ||
    feature === FEATURE.VECTOR ||
    feature === FEATURE.TIMESTAMP ||
    feature === FEATURE.HOST_IDENTIFIER ||
    (feature === FEATURE.HOST_MEMORY && core.hostMemory.isOffered)
  );
}

/** SET_FEATURES. */
export function setFeatures(core: Core, command: Command): void {
  const { engine, features } = core;
  const feature = command.dword(10) & 0xff;
  const value = command.dword(11);
  const end = (status: number, result = 0): void => engine.complete(command, status, result);
  if ((command.dword(10) & FEATURE_SAVE) !== 0) return end(STATUS.FEATURE_NOT_SAVEABLE);
  const word = WORDS.get(feature);
  if (word !== undefined) {
    // There is one power state. Other bits that are not offered, such as events, may be asked for, and do nothing.
    if (feature === FEATURE.POWER && (value & 0x1f) !== 0) return end(STATUS.INVALID_FIELD);
    const before = features.word(feature);
    features.setWord(feature, (value & word.mask) >>> 0);
    if (feature === FEATURE.ASYNC_EVENTS) core.checkHealth();
    if (feature === FEATURE.COALESCING) core.coalescing.changed();
    // What was cached is written before the cache is off.
    if (feature === FEATURE.WRITE_CACHE && before === 1 && !features.writeCache)
      return engine.call(command, (ended) => core.syncAll(ended), end);
    return end(STATUS.SUCCESS);
  }
  switch (feature) {
    case FEATURE.TEMPERATURE: {
      const sensor = (value >>> 16) & 0xf;
      // 15: all sensors.
      if ((sensor !== 0 && sensor !== 0xf) || ((value >>> 20) & 0x3) > 1) return end(STATUS.INVALID_FIELD);
      if ((value & UNDER) !== 0) features.under = value & 0xffff;
      else features.over = value & 0xffff;
      core.checkHealth();
      return end(STATUS.SUCCESS);
    }
    case FEATURE.QUEUES: {
      const submission = value & 0xffff;
      const completion = value >>> 16;
      if (submission === 0xffff || completion === 0xffff) return end(STATUS.INVALID_FIELD);
      // Only before there are I/O queues.
      if (engine.sqs.size > 1 || engine.cqs.size > 1) return end(STATUS.COMMAND_SEQUENCE);
      features.queues = Math.min(core.queues, Math.max(submission, completion) + 1);
      return end(STATUS.SUCCESS, (features.queues - 1) | ((features.queues - 1) << 16));
    }
    case FEATURE.VECTOR:
      if ((value & 0xffff) > core.queues) return end(STATUS.INVALID_FIELD);
      features.setVector(value & 0xffff, value);
      core.coalescing.changed();
      return end(STATUS.SUCCESS);
    case FEATURE.TIMESTAMP:
      return core.receive(command, 8, (bytes) => {
        features.setTimestamp(bytes, now());
        end(STATUS.SUCCESS);
      });
    case FEATURE.HOST_IDENTIFIER: {
      const length = (value & 1) === 1 ? 16 : 8;
      return core.receive(command, length, (bytes) => {
        features.hostIdentifier.fill(0);
        features.hostIdentifier.set(bytes);
        end(STATUS.SUCCESS);
      });
    }
    case FEATURE.HOST_MEMORY:
      if (core.hostMemory.isOffered) return core.hostMemory.set(command, () => core.health.errorPage());
  }
  return end(STATUS.INVALID_FIELD);
}
