import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ADMIN, commandName, eventResult, EVENT, EVENT_TYPE, LOG, NVM } from './commands.js';
import { STATUS, STATUS_FIELD, statusOf } from './status.js';

describe('NVMe status', () => {
  it('every code has its own name, and a text', () => {
    const codes = Object.values(STATUS);
    assert.equal(new Set(codes).size, codes.length);
    for (const [name, code] of Object.entries(STATUS)) {
      const status = statusOf(code);
      assert.equal(status.name, name);
      assert.equal((status.type << 8) | status.code, code);
      assert.ok(status.text.length > 0);
    }
  });

  it('dnr and more are bits of the field', () => {
    const status = statusOf(STATUS.LBA_OUT_OF_RANGE | STATUS_FIELD.DNR);
    assert.deepEqual([status.type, status.code, status.dnr, status.more], [0, 0x80, true, false]);
    assert.match(status.hint ?? '', /size in blocks/);
    assert.equal(statusOf(STATUS.COMPARE_FAILURE | STATUS_FIELD.MORE).more, true);
    assert.equal(statusOf(STATUS.COMPARE_FAILURE | STATUS_FIELD.MORE).name, 'COMPARE_FAILURE');
  });

  it('codes that are not known say of which kind they are', () => {
    assert.equal(statusOf(0x7c1).text, 'vendor specific status 0xc1');
    assert.equal(statusOf(0x2ff).text, 'media error 0xff');
    assert.equal(statusOf(0x501).text, 'status of type 5 0x1');
    assert.equal(statusOf(0x7c1).name, 'UNKNOWN');
  });
});

describe('NVMe commands', () => {
  it('are named by queue', () => {
    assert.equal(commandName(ADMIN.IDENTIFY, true), 'identify');
    assert.equal(commandName(NVM.WRITE_ZEROES, false), 'write zeroes');
    assert.equal(commandName(0x02, true), 'get log page');
    assert.equal(commandName(0x02, false), 'read');
    assert.equal(commandName(0xc0, false), 'opcode 0xc0');
  });

  it('events are three numbers in one', () => {
    assert.equal(eventResult(EVENT_TYPE.NOTICE, EVENT.NOTICE.NAMESPACES, LOG.CHANGED_NAMESPACES), 0x00040002);
    assert.equal(eventResult(EVENT_TYPE.HEALTH, EVENT.HEALTH.TEMPERATURE, LOG.SMART), 0x00020101);
  });
});
