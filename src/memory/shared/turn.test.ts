import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { openPlatform } from '../../platform/open.js';
import { Holders } from './holders.js';
import { Turn, TURN, whoHas } from './turn.js';

const { kernel } = openPlatform();

/** A turn, and the number of this thread. */
function made(): { turn: Turn; holders: Holders; mine: number } {
  const holders = Holders.create(kernel);
  const mine = holders.enter();
  return { turn: new Turn(new Int32Array(4), 1, holders), holders, mine };
}

describe('Turn', () => {
  it('goes from its maker to the first that takes it, and back', () => {
    const { turn, mine } = made();
    assert.equal(turn.isOut, false);
    assert.equal(turn.take(mine), TURN.MAKER);
    turn.offer();
    assert.equal(turn.isOut, true);
    assert.equal(turn.take(mine), TURN.OFFERED);
    assert.equal(turn.take(mine), mine);
    assert.notEqual(turn.user, undefined);
    assert.equal(turn.takeBack(), 'busy');
    turn.leave(mine + 1);
    assert.equal(turn.owner, mine);
    turn.leave(mine);
    assert.equal(turn.owner, TURN.OFFERED);
    assert.equal(turn.takeBack(), 'whole');
    assert.equal(turn.isOut, false);
  });

  it('does not belong to a thread that has the number of one that ended', () => {
    const { turn, holders, mine } = made();
    turn.offer();
    turn.take(mine);
    turn.forget(mine + 1);
    assert.equal(turn.owner, mine);
    turn.forget(mine);
    // This thread lives, and has that number.
    assert.equal(turn.user, undefined);
    assert.equal(whoHas(turn.owner, holders), 'a thread that has ended had');
    assert.equal(turn.take(mine), TURN.ENDED);
    assert.equal(turn.takeBack(), 'ended');
    assert.equal(turn.owner, TURN.MAKER);
  });

  it('is taken back from one that has ended', () => {
    const { turn, holders } = made();
    const nobody = holders.capacity;
    turn.offer();
    turn.take(nobody);
    assert.equal(whoHas(nobody, holders), 'a thread that has ended had');
    assert.equal(turn.takeBack(), 'ended');
  });
});
