/** A part of the sweep of deaths, another one each second; `npm run sweep` has the whole: see test/sweep/deaths.ts. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ownPlaces } from '../test/shared/places.js';
import { SIDES, sweep } from '../test/sweep/deaths.js';
import { openPlatform } from './platform/open.js';

/** Steps between two that are tried. */
const EVERY = { secondary: 41, primary: 61, pool: 9 };

describe('processes that are killed anywhere', { skip: openPlatform().limitation ?? false }, () => {
  ownPlaces();
  for (const side of SIDES)
    it(`${side}: the other one goes on, nothing is left, and no element is lost or doubled`, async () => {
      const every = EVERY[side];
      const { steps, killed } = await sweep(side, { from: 1 + (Math.floor(Date.now() / 1000) % every), every });
      assert.ok(killed >= Math.floor(steps / every) - 1, `${killed} of ${steps}`);
    });
});
