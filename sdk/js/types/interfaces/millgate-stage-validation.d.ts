/// <reference path="./millgate-stage-context.d.ts" />
/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/validation@0.1.0' {
  export function validate(ctx: Context, samples: Array<Sample>): Array<Judgement>;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
  export type Finding = import('millgate:stage/types@0.1.0').Finding;
  export type Context = import('millgate:stage/context@0.1.0').Context;
  /**
   * # Variants
   * 
   * ## `"request"`
   * 
   * ## `"row"`
   */
  export type Origin = 'request' | 'row';
  export interface Segment {
    path: string,
    role: string,
    text: string,
  }
  export interface Sample {
    origin: Origin,
    body: string,
    segments: Array<Segment>,
  }
  export interface Repair {
    path: string,
    text: string,
  }
  export type Outcome = OutcomeAccept | OutcomeRepair | OutcomeReject;
  export interface OutcomeAccept {
    tag: 'accept',
  }
  export interface OutcomeRepair {
    tag: 'repair',
    val: Array<Repair>,
  }
  export interface OutcomeReject {
    tag: 'reject',
    val: string,
  }
  export interface Judgement {
    outcome: Outcome,
    findings: Array<Finding>,
  }
}
