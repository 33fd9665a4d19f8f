import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { portablePlatform } from '../platform/portable.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { decideIovaMode, hasIommuGroups, hasPhysicalAddresses, type IovaFacts } from './iova-mode.js';

const votes = (...wishes: IovaFacts['votes'][number]['wish'][]): IovaFacts['votes'] =>
  wishes.map((wish, n) => ({ bus: `bus${n}`, wish }));
const facts = (more: Partial<IovaFacts>): IovaFacts => ({ votes: [], physicalAddresses: true, iommu: false, ...more });

describe('the decision on the IOVA mode', () => {
  for (const { rule, given, mode, why } of [
    { rule: '1.2.1 one bus wants va', given: { votes: votes('any', 'va') }, mode: 'va', why: /bus1 wants it/ },
    { rule: '1.2.1 one bus wants pa', given: { votes: votes('pa', 'any') }, mode: 'pa', why: /bus0 wants it/ },
    {
      rule: '1.2.1 they differ',
      given: { votes: votes('pa', 'va') },
      mode: 'pa',
      why: /bus1 wants va and bus0 wants pa/,
    },
    { rule: '1.2.3 forced', given: { votes: votes('pa'), forced: 'va' }, mode: 'va', why: /asked for it/ },
    { rule: '1.2.3 no physical addresses', given: { physicalAddresses: false }, mode: 'va', why: /are not available/ },
    { rule: '1.2.3 an IOMMU', given: { iommu: true }, mode: 'va', why: /IOMMU groups/ },
    { rule: '1.2.3 neither', given: {}, mode: 'pa', why: /no IOMMU/ },
    { rule: '1.2.1 an IOMMU, and pa wanted', given: { iommu: true, votes: votes('pa') }, mode: 'pa', why: /bus0/ },
  ] as const) {
    it(`${rule}: ${mode}`, () => {
      const decision = decideIovaMode(facts(given));
      assert.equal(decision.mode, mode);
      assert.match(decision.reason, why);
    });
  }

  it('1.2.4 pa without physical addresses is EINVAL, whoever wants it', () => {
    for (const given of [{ forced: 'pa' as const }, { votes: votes('pa') }]) {
      assert.throws(
        () => decideIovaMode(facts({ ...given, physicalAddresses: false })),
        (error) => isDmaError(error, 'EINVAL') && /pagemap/.test(error.message),
      );
    }
  });

  it('groups that VFIO makes up without an IOMMU are none', () => {
    const base = portablePlatform('a test').kernel;
    const withGroups = (...names: (string | undefined)[]): boolean =>
      hasIommuGroups({
        kernel: {
          ...base,
          list: () => names.map((_, n) => String(n)),
          readText: (path) => names[Number(/groups\/(\d+)\/name$/.exec(path)?.[1])],
        },
      });
    assert.equal(withGroups(), false);
    assert.equal(withGroups('vfio-noiommu\n', 'vfio-noiommu\n'), false);
    assert.equal(withGroups('vfio-noiommu\n', undefined), true);
  });

  it('1.2.5 asks the kernel, and leaves nothing', { skip: openPlatform().limitation ?? false }, () => {
    const platform = trackingPlatform(openPlatform());
    assert.equal(typeof hasPhysicalAddresses(platform), 'boolean');
    assert.deepEqual(platform.leaks(), []);
    assert.equal(hasPhysicalAddresses(portablePlatform('a test')), false);
  });
});
