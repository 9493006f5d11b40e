/// <reference path="./millgate-stage-context.d.ts" />
/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/deployment@0.1.0' {
  export function route(ctx: Context, features: Array<Label>, arms: Array<Arm>): Choice;
  export function review(rollout: Rollout): Recommendation;
  export function save(): Uint8Array;
  export function restore(state: Uint8Array): void;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
  export type Label = import('millgate:stage/types@0.1.0').Label;
  export type Measure = import('millgate:stage/types@0.1.0').Measure;
  export type Context = import('millgate:stage/context@0.1.0').Context;
  /**
   * # Variants
   * 
   * ## `"stable"`
   * 
   * ## `"candidate"`
   */
  export type ArmRole = 'stable' | 'candidate';
  export interface Arm {
    name: string,
    role: ArmRole,
    weight: number,
  }
  export interface Choice {
    arm: string,
    propensity: number,
    reason: string,
  }
  export interface MetricSummary {
    name: string,
    count: bigint,
    mean: number,
    m2: number,
  }
  export interface ArmSummary {
    arm: Arm,
    requests: bigint,
    metrics: Array<MetricSummary>,
  }
  export interface Rollout {
    id: string,
    elapsedMs: bigint,
    candidateWeight: number,
    arms: Array<ArmSummary>,
  }
  export type Action = ActionHold | ActionShift | ActionPromote | ActionRollBack | ActionPause;
  export interface ActionHold {
    tag: 'hold',
  }
  export interface ActionShift {
    tag: 'shift',
    val: number,
  }
  export interface ActionPromote {
    tag: 'promote',
  }
  export interface ActionRollBack {
    tag: 'roll-back',
  }
  export interface ActionPause {
    tag: 'pause',
  }
  export interface Recommendation {
    action: Action,
    reason: string,
    evidence: Array<Measure>,
  }
}
